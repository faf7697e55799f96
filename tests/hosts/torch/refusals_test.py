"""What graft_lora's checks refuse, the library refuses too: they run only when a call has failed."""

import itertools
import unittest

import torch

import graft_lora
from graft_lora.layer_norm import _check as check_layer_norm
from graft_lora.linear import _check as check_linear
from graft_lora.lora import _check_delta, _check_linear
from graft_lora.rms_norm import _check_add, _check_norm
from graft_lora.softmax import _check as check_softmax

ROWS, INPUTS, OUTPUTS, RANK = 3, 8, 6, 2


def tensors_of(*names: str) -> dict:
    shapes = {
        "x": (ROWS, INPUTS),
        "residual": (ROWS, INPUTS),
        "weight": (OUTPUTS, INPUTS),
        "bias": (OUTPUTS,),
        "a": (RANK, INPUTS),
        "b": (OUTPUTS, RANK),
        "norm_weight": (INPUTS,),
        "norm_bias": (INPUTS,),
    }
    return {name.removeprefix("norm_"): torch.ones(shapes[name]) for name in names}


def spoiled(tensor: torch.Tensor):
    """Tensors that stand where `tensor` does not fit."""
    yield "nothing", None
    yield "a number", 1.0
    for dtype in (torch.float64, torch.float16, torch.int32, torch.int64, torch.bool, torch.complex64):
        yield str(dtype), tensor.to(dtype)
    yield "a single number", tensor.sum()
    yield "flat", tensor.flatten()
    yield "empty", tensor[:0]
    yield "one more dimension", tensor.unsqueeze(0)
    for axis in range(tensor.dim()):
        yield f"longer in {axis}", torch.cat([tensor, tensor], axis)
        yield f"shorter in {axis}", tensor.narrow(axis, 0, tensor.shape[axis] - 1)
        yield f"none in {axis}", tensor.narrow(axis, 0, 0)
    yield "of rank 257", torch.ones(257, tensor.shape[-1])
    yield "nine dimensions", tensor.reshape(*[1] * 7, *tensor.shape)
    yield "of no memory", tensor.to("meta")


CASES = [
    (graft_lora.linear, check_linear, tensors_of("x", "weight", "bias")),
    (graft_lora.lora_linear, _check_linear, tensors_of("x", "weight", "bias", "a", "b")),
    (graft_lora.lora_delta, _check_delta, tensors_of("x", "a", "b")),
    (graft_lora.softmax, check_softmax, tensors_of("x")),
    (graft_lora.rms_norm, _check_norm, tensors_of("x", "norm_weight")),
    (graft_lora.add_rms_norm, _check_add, tensors_of("x", "residual", "norm_weight")),
    (graft_lora.layer_norm, check_layer_norm, tensors_of("x", "norm_weight", "norm_bias")),
]


class Refusals(unittest.TestCase):
    def test_whatever_the_checks_refuse_fails_and_is_explained(self):
        refused = 0
        for (function, check, good), gradient in itertools.product(CASES, (False, True)):
            function(**good)
            for name, tensor in good.items():
                for what, bad in spoiled(tensor):
                    arguments = {**good, name: bad}
                    if gradient:
                        arguments = {
                            key: (
                                value.clone().requires_grad_()
                                if isinstance(value, torch.Tensor) and value.is_floating_point()
                                else value
                            )
                            for key, value in arguments.items()
                        }
                    with self.subTest(f"{function.__name__} {name} {what} gradient={gradient}"):
                        try:
                            check(**arguments)
                        except graft_lora.GraftError as error:
                            refused += 1
                            with self.assertRaises(graft_lora.GraftError) as found:
                                function(**arguments)
                            self.assertEqual(str(found.exception), str(error))
        self.assertGreater(refused, 300)

    def test_a_chance_that_is_none(self):
        good = tensors_of("x", "a", "b")
        for p in (-0.1, 1.0, 1.5, float("nan")):
            with self.assertRaisesRegex(graft_lora.GraftError, "dropout: expected a chance"):
                graft_lora.lora_delta(**good, dropout=p)


if __name__ == "__main__":
    unittest.main()
