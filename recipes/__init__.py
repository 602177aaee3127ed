"""Known set-ups as YAML: `lorafold recipes` lists them, `--recipe NAME` uses one."""
