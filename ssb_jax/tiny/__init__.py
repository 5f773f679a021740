"""The embedded default: word problems of ours, and a small Qwen2 model really pretrained on them, shipped in `model/`.

problems -> Question    a generator with splits that share no chain of numbers
corpus   -> Dialogue    what the model was pretrained on, slips included
tokenizer               whole words and single digits, any text round-trips
pretrain                the script that made `model/`; anyone can run it again

Importing this package, `problems` or `corpus` does not import jax.
"""
