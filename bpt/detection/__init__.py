"""Object detection and instance segmentation on a prompted plain ViT.

The backbone is the same as in classification: a frozen ViT with prompts in front of chosen blocks.
Behind it stand a simple feature pyramid, a region proposal network and the heads of Mask R-CNN or
Cascade Mask R-CNN, all of them trained.

Source: Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection",
arXiv 2203.16527 (pyramid and heads); Wang et al. 2025, arXiv 2506.22908 (with prompts).
"""
