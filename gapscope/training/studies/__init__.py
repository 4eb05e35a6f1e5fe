"""AN OPEN SET: the papers' experiments, a folder each.

A study is a package of this folder with a `Plan` (a frozen dataclass whose fields are the keys of its `plan.toml`) and
a function `study(lab, plan) -> Outcome`; its other files are one part of the paper each.
"""
