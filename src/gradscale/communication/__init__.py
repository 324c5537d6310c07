"""What ranks send each other has a format, too: gradients compressed without losing any."""

from gradscale.communication.compress_hook import CompressGradients as CompressGradients
