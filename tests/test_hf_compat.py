"""The shim for transformers is needed: when one of these fails, the part of it that it names can go."""

from __future__ import annotations

import pytest

from pocketdraft.export import hf_compat
from pocketdraft.export.tiny.configs import dense_target_config, drafter_config, target_config


def test_transformers_still_cannot_tell_the_modes_of_an_assistant():
    config = drafter_config(target_config(), centroids=False).text_config
    with pytest.raises(Exception, match=r".*"):
        hf_compat._original_modes.fget(config)


def test_transformers_still_stores_nothing_for_dense_targets():
    assert "store" not in hf_compat._original_modes.fget(dense_target_config())


def test_the_shim_agrees_with_transformers_where_that_works():
    hf_compat.patch_transformers()
    config = target_config()
    assert config.kv_sharing_modes == hf_compat._original_modes.fget(config)
