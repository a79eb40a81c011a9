from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vl_plugin_qwen.tower import VisualConfig, VisualTower

from vlcore import ConfigError

VISUAL: dict[str, Any] = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}
TINY = VISUAL | {"heads": 2, "layers": 1, "output_dim": 128, "width": 32, "image_size": 28}


def tower(**sizes: Any) -> VisualTower:
    torch.manual_seed(0)
    built = VisualTower(VisualConfig.from_json(TINY | sizes, "visual")).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built.requires_grad_(False)


def test_the_released_sizes() -> None:
    config = VisualConfig.from_json(VISUAL, "visual")
    assert (config.mlp_width, config.grid_size) == (8192, 32)
    with torch.device("meta"):
        released = VisualTower(config)
    num_parameters = sum(parameter.numel() for parameter in released.parameters())
    assert round(num_parameters / 1e9, 2) == 1.94


def test_positions_are_stretched_once() -> None:
    stretching = tower(image_size=42)
    table = stretching.positional_embedding.clone()
    stretching.stretch_positions()
    image = table.T.reshape(1, 32, 16, 16)
    expected = F.interpolate(image, (3, 3), mode="bicubic", align_corners=False)
    assert torch.equal(stretching.positional_embedding, expected.flatten(2)[0].T)
    assert stretching.attn_pool.key_positions.shape == (9, 128)
    assert stretching.attn_pool.pos_embed.shape == (256, 128)


def test_positions_are_left_alone_where_they_fit() -> None:
    fitting = tower(image_size=224)
    table = fitting.positional_embedding.clone()
    fitting.stretch_positions()
    assert torch.equal(fitting.positional_embedding, table)
    assert torch.equal(fitting.attn_pool.key_positions, fitting.attn_pool.pos_embed)


def test_a_call_interpolates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tower()
    ready.stretch_positions()
    monkeypatch.setattr(F, "interpolate", lambda *_, **__: pytest.fail("interpolated"))
    assert ready(torch.zeros(3, 3, 28, 28)).shape == (3, 256, 128)


def test_a_tower_as_wide_as_its_rows_has_no_projection() -> None:
    wide = tower(width=128)
    assert not any("kv_proj" in name for name in wide.state_dict())
    wide.stretch_positions()
    assert wide(torch.zeros(1, 3, 28, 28)).shape == (1, 256, 128)


def test_pooling_is_torchs_multihead_attention() -> None:
    pool = tower(output_dim=256).attn_pool.attn.double()
    reference = torch.nn.MultiheadAttention(256, 2, batch_first=True, dtype=torch.float64)
    reference.load_state_dict(pool.state_dict())
    query, keys, values = (torch.randn(n, 256).double() for n in (256, 18, 18))
    keys, values = keys.view(2, 9, 256), values.view(2, 9, 256)
    expected, _ = reference(query.expand(2, -1, -1), keys, values)
    torch.testing.assert_close(pool(query, keys, values), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": ...}, "lacks width; it has"),
        ({"width": ..., "layers": ...}, "lacks layers, width; it has"),
        ({"heads": 0}, "heads must be a positive integer; it is 0"),
        ({"layers": "many"}, "layers must be a positive integer; it is 'many'"),
        ({"patch_size": True}, "patch_size must be a positive integer; it is True"),
        ({"mlp_ratio": -1}, "mlp_ratio must be a positive number; it is -1"),
        ({"heads": 5}, "width 1664 is not a multiple of heads 5"),
        ({"output_dim": 200}, "output_dim 200 is not a multiple of 128"),
        ({"image_size": 7}, "an image of 7 pixels holds no patch of 14"),
    ],
)
def test_an_impossible_tower_is_reported(change: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in (VISUAL | change).items() if value is not ...}
    with pytest.raises(ConfigError, match=f"^visual.* {message}"):
        VisualConfig.from_json(config, "visual of x:")
