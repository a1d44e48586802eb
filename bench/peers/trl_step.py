"""One learner step of TRL's GRPOTrainer on given completions, timed by itself. Runs in the environment that trl.sh makes.

Reads a batch, tells the gradient's norm of a first step, then makes a step for every line on its input and answers with its seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

ROWS = (8, 16, 32, 64, 128, 256)  # of one pass: the fastest is taken


def make_trainer(folder: Path, learning_rate: float, group: int) -> GRPOTrainer:
    """Defaults, but for what would make the two sides do different work; generation is never asked for."""
    words = {f"t{i}": i for i in range(json.loads((folder / "config.json").read_text())["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="t0", eos_token="t1"
    )
    config = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        learning_rate=learning_rate, lr_scheduler_type="constant", per_device_train_batch_size=group, num_generations=group,
        epsilon_high=0.28, adam_beta2=0.95, max_grad_norm=1.0, disable_dropout=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(folder), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_dict({"prompt": ["t2"] * group}), processing_class=tokenizer,
    )  # fmt: skip
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    return trainer


def padded(folder: Path) -> dict[str, torch.Tensor]:
    """The batch as TRL's generation hands it over: prompts padded on the left, completions on the right, to the longest of all."""
    episodes = json.loads((folder / "episodes.json").read_text())

    def rectangle(key: str, left: bool) -> torch.Tensor:
        longest = max(len(episode[key]) for episode in episodes)
        rows = [[0] * (longest - len(e[key])) + e[key] if left else e[key] + [0] * (longest - len(e[key])) for e in episodes]
        return torch.tensor(rows)

    for episode in episodes:
        episode |= {"prompt_mask": [1] * len(episode["prompt"]), "completion_mask": [1] * len(episode["completion"])}
    tool_mask = rectangle("chosen", left=False)
    return {
        "prompt_ids": rectangle("prompt", left=True), "prompt_mask": rectangle("prompt_mask", left=True),
        "completion_ids": rectangle("completion", left=False), "completion_mask": rectangle("completion_mask", left=False),
        "tool_mask": tool_mask, "advantages": torch.tensor([episode["advantage"] for episode in episodes]),
        "num_items_in_batch": tool_mask.sum(),
    }  # fmt: skip


def step(trainer: GRPOTrainer, batch: dict[str, torch.Tensor], rows: int) -> tuple[float, float]:
    """Log-probabilities, loss, backward pass, clipping and optimiser over the whole batch, `rows` a pass."""
    started = time.perf_counter()
    passes = len(batch["prompt_ids"]) // rows
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = passes
    parts = split_tensor_dict({name: value for name, value in batch.items() if value.dim()}, passes)
    for part in parts:
        trainer._prepare_inputs = lambda _, part=part: part | {"num_items_in_batch": batch["num_items_in_batch"]}
        trainer.training_step(trainer.model, {}, None)
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return time.perf_counter() - started, float(norm)


def main() -> None:
    folder, learning_rate, group = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(1)
    trainer, batch = make_trainer(folder, learning_rate, group), padded(folder)
    trainer.model.train()
    _, norm = step(trainer, batch, ROWS[0])  # of the model as it was given
    fastest = min(ROWS, key=lambda rows: min(step(trainer, batch, rows)[0] for _ in range(2)))
    print(json.dumps({"version": f"TRL {version('trl')}", "rows": fastest, "grad_norm": norm}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": step(trainer, batch, fastest)[0]}), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
