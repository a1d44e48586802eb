"""Seeded fuzzing of everything that reads bytes or text from outside: `make fuzz`, or `python -m tests.fuzz --help`.

```
 target = samples ─mutate─▶ case (bytes) ─run─▶ read · refused in one line │ anything else is a failure ─shrink─▶ regressions/TARGET/…
```
Case N of a target follows from (seed, target, N) alone, so a failure can be made again without the cases before it.
"""
