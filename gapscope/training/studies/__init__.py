"""AN OPEN SET: the papers' experiments, one file and one plan each.

A study is a module of this folder with a `Plan` (a frozen dataclass whose fields are the keys of its TOML file of the
same name) and a function `study(lab, plan) -> Outcome`.  Its docstring is what `gapscope study` says of it.
"""
