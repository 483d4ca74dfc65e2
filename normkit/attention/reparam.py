"""Sigma reparametrization (Zhai et al. 2023, 2303.06296): every matrix is gamma times a matrix of spectral norm 1.

W_hat = gamma / sigma(W) W with one learned number gamma. sigma is estimated by power iteration, one step a use in
training, and differentiated through W: the loss's gradient to W is then orthogonal to W, and only gamma can make the
matrix larger.
"""

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.attention.reparam needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.nn.utils import parametrize

from normkit.checks import positive

__all__ = ["SigmaReparam", "Spectral"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SigmaReparam(nn.Module):
    """Reparametrizes the linear and convolutional layers of a module, in place; calling it calls the module.

    module: a layer, or any module that has some. A convolution's matrix is (out, in * kernel); the three matrices that
    nn.MultiheadAttention keeps in one parameter each get their own sigma and gamma. gamma: where it starts, a positive
    number (1 in the paper) or "sigma", the matrix's own spectral norm, which leaves the module's function as it is.
    which(name, layer) -> bool chooses among a model's layers; all by default. A name is "" for the module itself.

    The matrix is no longer a parameter, but computed at each use; the optimizer's parameters are `original` and `gamma`,
    so make it after wrapping. In training mode each use moves the power iteration on; in evaluation mode nothing moves.
    sigma is computed in float32 for half precision, inside autocast too. Raises ValueError where no layer is chosen, for
    a matrix that is zero or not finite, for one that is reparametrized already, and for a gamma that is not positive.
    """

    def __init__(self, module, *, gamma=1.0, which=None):
        super().__init__()
        if gamma != "sigma":
            if isinstance(gamma, str):
                raise ValueError(f"gamma must be a positive number or 'sigma', got {gamma!r}")
            positive("gamma", gamma)
        found = [
            (name, layer, weight, blocks)
            for name, layer in module.named_modules()
            for weight, blocks in _matrices(layer)
            if which is None or which(name, layer)
        ]
        if not found:
            raise ValueError(f"no linear or convolutional layer of {type(module).__name__} was chosen")
        made = [_spectral(name, layer, weight, blocks, gamma) for name, layer, weight, blocks in found]
        for (_, layer, weight, _), spectral in zip(found, made, strict=True):  # all of them, or none
            # "unsafe" leaves out torch's check of shape and dtype, which would move the power iteration on.
            parametrize.register_parametrization(layer, weight, spectral.train(layer.training), unsafe=True)
        self.module, self.training = module, module.training

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def remove(self):
        """The module with plain parameters again, which hold the matrices that evaluation mode uses.

        They are new parameters (the old ones may be tied to a layer that keeps them): make a new optimizer.
        """
        for layer, weight, spectral in list(self._spectrals().values()):
            spectral.eval()
            fixed = getattr(layer, weight).clone()
            parametrize.remove_parametrizations(layer, weight, leave_parametrized=False)
            wanted = getattr(layer, weight).requires_grad
            setattr(layer, weight, nn.Parameter(fixed, requires_grad=wanted))
        return self.module

    @torch.no_grad()
    def norms(self):
        """{name of the weight: (sigma, gamma)}, each (matrices,): the estimated norm of W, and that of W_hat."""
        found = {}
        for name, (layer, weight, spectral) in self._spectrals().items():
            original = layer.parametrizations[weight].original
            found[name] = spectral.sigma(spectral.matrix(original))[0], spectral.gamma.detach().clone()
        return found

    def _spectrals(self):
        return {
            f"{name}.{weight}".lstrip("."): (layer, weight, spectral)
            for name, layer in self.module.named_modules()
            if parametrize.is_parametrized(layer)
            for weight, chain in layer.parametrizations.items()
            for spectral in chain
            if isinstance(spectral, Spectral)
        }


class Spectral(nn.Module):
    """W -> gamma / sigma(W) W for a parameter that holds `blocks` matrices on top of each other.

    State: gamma (blocks,), and u (blocks, columns), the first right singular vectors. A use computes v = W u / |W u|,
    then u = W^T v / |W^T v|, and sigma = v^T W u with the new u; training keeps it. (Read in the released code, which
    starts from an exact decomposition, too, and bounds both lengths from below by 1e-12.)
    """

    def __init__(self, weight, blocks=1, gamma=1.0):
        super().__init__()
        self.blocks = blocks
        matrix = self.matrix(weight)
        _, singular, right = torch.linalg.svd(matrix, full_matrices=False)
        start = singular[:, 0] if gamma == "sigma" else torch.full_like(singular[:, 0], gamma)
        self.gamma = nn.Parameter(start.clone())
        self.register_buffer("u", right[:, 0].clone())

    def matrix(self, weight):
        """(blocks, rows, columns) in float32 or wider."""
        matrix = weight.reshape(self.blocks, weight.shape[0] // self.blocks, -1)
        return matrix.to(torch.promote_types(matrix.dtype, torch.float32))

    def sigma(self, matrix):
        """The estimates (blocks,), with gradient to the matrix, and the new u."""
        with torch.no_grad():  # on W times a power of two, which rounds nothing: squares of 1e30 overflow
            exponent = torch.frexp(matrix.abs().amax((1, 2), keepdim=True)).exponent.clamp(-126, 126)
            tame = torch.ldexp(matrix, -exponent)
            v = nn.functional.normalize((tame @ self.u.to(matrix.dtype)[..., None])[..., 0], dim=-1)
            u = nn.functional.normalize((v[:, None] @ tame)[:, 0], dim=-1)
        return torch.einsum("br,brc,bc->b", v, matrix, u), u

    def forward(self, weight):
        with torch.autocast(weight.device.type, enabled=False):
            matrix = self.matrix(weight)
            sigma, u = self.sigma(matrix)
            if self.training:
                with torch.no_grad():
                    self.u.copy_(u)
            scaled = matrix / sigma[:, None, None] * self.gamma.to(matrix.dtype)[:, None, None]
            return scaled.reshape(weight.shape).to(weight.dtype)


def _matrices(layer):
    """(parameter name, number of matrices in it) of one layer."""
    if isinstance(layer, LAYERS):
        return [("weight", 1)]
    if isinstance(layer, nn.MultiheadAttention):
        if layer.in_proj_weight is not None:
            return [("in_proj_weight", 3)]
        return [(f"{part}_proj_weight", 1) for part in "qkv"]
    return []


@torch.no_grad()
def _spectral(name, layer, weight, blocks, gamma):
    called = f"{name}.{weight}".lstrip(".")
    if parametrize.is_parametrized(layer, weight):
        raise ValueError(f"{called} is parametrized already; remove that parametrization first")
    value = getattr(layer, weight)
    if not torch.isfinite(value).all():
        raise ValueError(f"{called} is not finite: it has no spectral norm; look where it was computed")
    if not (value.reshape(blocks, -1) != 0).any(-1).all():
        raise ValueError(f"{called} is zero: W / sigma(W) does not exist; leave it out with which=")
    return Spectral(value, blocks, gamma)
