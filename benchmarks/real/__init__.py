"""Training at the sizes that people train: ResNet-50, GPT-2 of 124 M, a U-Net at 512 x 512."""
