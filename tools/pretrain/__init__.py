"""How the small backbones of the package were pretrained: MAE, MoCo v3, supervised.

`python -m tools.pretrain mae|moco|supervised --data ... --out RUN`, then
`python -m tools.pretrain export RUN`. README.md beside this file has the whole story.
"""
