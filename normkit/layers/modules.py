"""`torch.nn.Module`s over the functions of norms.py, with torch's argument names and parameter names."""

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.layers.LayerNorm and RMSNorm need torch; pip install 'normkit[torch]'") from error
from torch import nn

from normkit.layers.norms import layer_norm, rms_norm


class _Norm(nn.Module):
    def __init__(self, normalized_shape, eps, elementwise_affine, bias, device, dtype):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(
                f"normalized_shape must be one positive size, that of the last axis, got {normalized_shape}; "
                "flatten several axes into one first"
            )
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        for name, value, wanted in ("weight", torch.ones, True), ("bias", torch.zeros, bias):
            kept = nn.Parameter(value(shape, device=device, dtype=dtype)) if elementwise_affine and wanted else None
            self.register_parameter(name, kept)

    def _check(self, x):
        if x.shape[-1:] != self.normalized_shape:
            raise ValueError(f"the last axis must have size {self.normalized_shape[0]}, got shape {tuple(x.shape)}")

    def extra_repr(self):
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LayerNorm(_Norm):
    """torch.nn.LayerNorm over the last axis; see `layer_norm`. Its state_dict loads torch's and the reverse."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, device=None, dtype=None):
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    def forward(self, x):
        self._check(x)
        return layer_norm.reference(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(_Norm):
    """torch.nn.RMSNorm over the last axis; see `rms_norm`. eps=None is torch's default: x's machine epsilon."""

    def __init__(self, normalized_shape, eps=1e-6, elementwise_affine=True, device=None, dtype=None):
        super().__init__(normalized_shape, eps, elementwise_affine, False, device, dtype)
        del self.bias

    def forward(self, x):
        self._check(x)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return rms_norm.reference(x, self.weight, eps=eps)
