"""What a model's config.json says about its size: the shapes of its weights, and how many there are. No torch, no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Shapes of models whose folder need not be at hand for a memory estimate, by the folder's usual name.
KNOWN = Path(__file__).parent / "model_shapes.json"
# Which linear layers have biases, and whether heads are normalised; what else differs does not change a size.
ALWAYS_BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj"), "qwen3": (), "llama": ()}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LARGEST = 10**9  # of one size: more is a slip of the hand, or damage
HEAD_SIZE = {"qwen3": 128}  # where config.json is silent; elsewhere the hidden size is dealt to the heads


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a decoder layer."""

    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of the Llama family: Llama, Qwen2 (and 2.5), Qwen3."""

    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool  # the output layer is the embedding
    head_norms: bool  # queries and keys are normalised per head
    biased: tuple[str, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a Hugging Face config.json describes."""
        kind = str(config.get("model_type"))[:80]
        if kind not in ALWAYS_BIASED:
            raise ValueError(f"model_type is {kind!r}; sizes are known for {', '.join(ALWAYS_BIASED)}")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        asked = (ATTENTION if config.get("attention_bias") else ()) + (MLP if config.get("mlp_bias") else ())
        return cls(
            vocabulary=config["vocab_size"],
            hidden=hidden,
            ffn=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or HEAD_SIZE.get(kind, hidden // heads),
            tied=bool(config.get("tie_word_embeddings", False)),
            head_norms=kind == "qwen3",
            biased=ALWAYS_BIASED[kind] or asked,
        )

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.hidden, self.ffn, self.layers, self.heads, self.kv_heads, self.head_size)
        if not all(type(size) is int and 0 < size < LARGEST for size in sizes):
            raise TypeError("a size is no whole number above 0")

    @property
    def query(self) -> int:
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of one decoder layer, by Hugging Face's names."""
        sizes = {
            "q_proj": (self.hidden, self.query), "k_proj": (self.hidden, self.key), "v_proj": (self.hidden, self.key),
            "o_proj": (self.query, self.hidden), "gate_proj": (self.hidden, self.ffn), "up_proj": (self.hidden, self.ffn),
            "down_proj": (self.ffn, self.hidden),
        }  # fmt: skip
        return {name: Linear(*size, bias=name in self.biased) for name, size in sizes.items()}

    @property
    def layer_parameters(self) -> int:
        norms = 2 * self.hidden + 2 * self.head_size * self.head_norms
        return norms + sum(linear.parameters for linear in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """What belongs to no decoder layer: embedding, output layer, last norm."""
        return self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def backbone_parameters(self) -> int:
        """All but an output layer of its own."""
        return self.layers * self.layer_parameters + self.embedding_parameters + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.root_parameters

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Of low-rank adapters on the named linear layers of every decoder layer."""
        linears = self.linears
        return self.layers * sum(rank * (linears[name].inputs + linears[name].outputs) for name in targets if name in linears)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no JSON ({error}): copy the model's folder again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: must hold one JSON object, not {type(config).__name__}")
    return config


def read_shape(model_dir: Path) -> ModelShape:
    """The shape of a model folder; where it is not at hand, that of a known model of this name."""
    file = model_dir / "config.json"
    if file.is_file():
        config = _read(file)
    else:
        known = json.loads(KNOWN.read_text(encoding="utf-8"))
        if model_dir.name not in known:
            raise ValueError(f"{model_dir} has no config.json, and only these sizes are known by name: {', '.join(known)}")
        config = known[model_dir.name]
    try:
        return ModelShape.from_config(config)
    except KeyError as missing:
        raise ValueError(f"{file} lacks {missing}: copy the model's folder again") from None
    except (TypeError, ZeroDivisionError):
        raise ValueError(f"{file}: its sizes are no numbers above 0: copy the model's folder again") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
