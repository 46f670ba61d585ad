"""Campaigns: long runs against what nobody thought of, each printing its figures. `make campaigns` runs them all.

    python -m campaigns.models --seed 1 --count 2000      damaged model files
    python -m campaigns.texts  --seed 1 --count 1000      damaged data, plans, state files, checkpoints and recipes
    python -m campaigns.kills  --seed 1 --count 50        runs that are killed at random moments
    python -m campaigns.disk                              a disk that is full after some bytes
    python -m campaigns.layouts                           every command on every layout of external data
    python -m campaigns.networks --seed 1 --count 200     random cuts of small networks against an outside verifier

Case N of a seed is always the same: `--only N` runs it alone and shows what it says.
"""
