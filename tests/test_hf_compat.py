"""The shim for transformers is needed: when one of these fails, the part of it that it names can go."""

from __future__ import annotations

import pytest

from pocketdraft.export import hf_compat
from pocketdraft.export.sizes import configs
from pocketdraft.export.tiny.configs import target_config


def original_modes(config):
    return hf_compat._ORIGINAL_MODES[type(config)].fget(config)


@pytest.mark.parametrize("size", ["31b", "12b"])  # one of each kind
def test_transformers_still_cannot_tell_the_modes_of_an_assistant(size):
    with pytest.raises(Exception, match=r".*"):
        original_modes(configs(size)[1].text_config)


@pytest.mark.parametrize("size", ["31b", "12b"])
def test_transformers_still_stores_nothing_for_dense_targets(size):
    assert "store" not in original_modes(configs(size)[0])


def test_the_shim_agrees_with_transformers_where_that_works():
    hf_compat.patch_transformers()
    config = target_config()
    assert config.kv_sharing_modes == original_modes(config)
