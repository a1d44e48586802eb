"""Whole GRPO steps of TRL on given prompts: generate, reward, learn. Runs in the environment that trl.sh makes.

Reads settings.json in the folder that it is given, trains so many steps by TRL's own loop, and answers with the seconds and sampled
tokens of each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """When each step ended, by the wall and by this process's processor time."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def words(ids: list[int]) -> str:
    """Prompts are given as token ids; TRL takes text, of which this tokenizer makes the same ids again.

    The semicolon keeps a special token from being found within another word.
    """
    return " ".join(f"t{token};" for token in ids)


def make_trainer(folder: Path, settings: dict[str, Any], sampled: list[int], clock: Clock) -> GRPOTrainer:
    """Defaults, but for what would make the two sides do different work."""
    vocabulary = {f"t{i};": i for i in range(json.loads((folder / "config.json").read_text())["vocab_size"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0;"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    stop = settings["stop_ids"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="t0;", eos_token=f"t{stop[0]};")
    group, batch, rows = settings["group"], settings["batch"], settings["rows"]
    config = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_strategy="no", learning_rate=settings["learning_rate"], lr_scheduler_type="constant", max_steps=settings["steps"],
        per_device_train_batch_size=rows, gradient_accumulation_steps=batch // rows, num_generations=group, shuffle_dataset=False,
        max_completion_length=settings["max_tokens"], temperature=settings["temperature"], epsilon_high=0.28, adam_beta2=0.95,
        max_grad_norm=1.0, disable_dropout=True, generation_kwargs={"eos_token_id": stop},
        use_transformers_continuous_batching=settings["continuous"], disable_tqdm=True,
    )  # fmt: skip

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Spread, so that no advantage is zero; costs nothing."""
        sampled.append(sum(map(len, completion_ids)))
        return [float(sum(ids) % 7) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=str(folder), reward_funcs=reward, args=config, processing_class=tokenizer, callbacks=[clock],
        train_dataset=Dataset.from_dict({"prompt": [words(ids) for ids in settings["prompts"]]}),
    )  # fmt: skip
    trainer.eos_token_ids = stop
    return trainer


def main() -> None:
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(settings["threads"])
    sampled, clock = list[int](), Clock()
    trainer = make_trainer(folder, settings, sampled, clock)
    read = trainer.processing_class(words(settings["prompts"][0]))["input_ids"]
    if read != settings["prompts"][0]:
        raise RuntimeError("the prompt's text is not read as the prompt's tokens")
    trainer.train()
    steps = [
        {"seconds": end - began, "processor_s": used - before, "tokens": tokens}
        for (began, before), (end, used), tokens in zip(clock.ends, clock.ends[1:], sampled[1:], strict=False)
    ]
    about = {"version": f"TRL {version('trl')}, transformers {version('transformers')}", "steps": steps}
    print(json.dumps(about), file=answers, flush=True)
    os._exit(0)  # the threads of continuous batching would wait for more


if __name__ == "__main__":
    main()
