"""Imports of a rank of `rank_sets`, made once in the server that ranks are forked from."""

import warnings

warnings.simplefilter("ignore")  # what the libraries say about kernels this machine does not have

import megatron_kd.training.train  # noqa: E402, F401
