"""Faults of a vision model."""

from __future__ import annotations

from broken_plugins.fault import Broken

VISION = [
    Broken(
        "a vision model that does not load",
        "vision-loads",
        "TensorError",
        {'{"projector.": ""}': '{"projektor.": ""}'},
        also=("rest",),
    ),
    Broken(
        "an exit out of a hook",
        "vision-loads",
        "SystemExit: no",
        {'        self.patch = checkpoint.config["patch_size"]': '        raise SystemExit("no")'},
        also=("rest",),
    ),
    Broken(
        "a module in training mode",
        "vision-loads",
        "Dropout in training mode",
        {
            "checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)": (
                "checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)\n"
                "        self.dropout = nn.Dropout(0.1)"
            )
        },
        also=("rest",),
    ),
    Broken(
        "a module that cannot be imported alone",
        "light-import",
        "No module named 'patchwork_extras'",
        {
            "import hookimpl\n": (
                "import hookimpl\nimport sys\nif 'pytest' not in sys.modules:\n"
                "    import patchwork_extras\n"
            )
        },
        also=("quiet-import",),
    ),
    Broken(
        "rows with a batch dimension",
        "rows-shape",
        "a tensor [1, 8, 32]",
        {"patches.transpose(1, 2)[0]": "patches.transpose(1, 2)"},
        also=("spans-sum", "rows-announced"),
    ),
    Broken(
        "rows of the vision encoder's width",
        "rows-shape",
        "48",
        {
            '["text_config"]["hidden_size"]': '["text_config"]["intermediate_size"]',
            "self.projector(patches.transpose(1, 2)[0])": "patches.transpose(1, 2)[0]",
            "checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)": (
                "self.projector.to(device, dtype)"
            ),
        },
    ),
    Broken(
        "one result for two images",
        "plain-pictures",
        "1 result(s)",
        {"for image in inputs]": "for image in inputs[:1]]"},
        also=("batch-equals-singles",),
    ),
    Broken(
        "NaN where an image has a black corner",
        "rows-finite",
        "NaN or Inf",
        {
            "ImageRows(rows, image.layout)": "ImageRows(rows / (rows > 0), image.layout)",
        },
        also=("odd-images",),
    ),
    Broken(
        "rows in float32 whatever was asked for",
        "rows-dtype",
        "torch.float32",
        {
            "device=device, dtype=dtype)": "device=device, dtype=torch.float32)",
        },
    ),
    Broken(
        "a wrong number of rows beforehand",
        "rows-announced",
        "num_rows=9",
        {"num_rows=rows * columns": "num_rows=rows * columns + 1"},
    ),
    Broken(
        "dropout that is left on",
        "rows-repeat",
        "rows that differ",
        {
            "ImageRows(rows, image.layout)": "ImageRows(nn.Dropout(0.5)(rows), image.layout)",
        },
        also=("batch-equals-singles", "threads"),
    ),
    Broken(
        "statistics over the batch",
        "batch-equals-singles",
        "rows that differ",
        {
            "        return [self.encode(image) for image in inputs]": (
                "        mean = torch.stack([image.pixels.mean() for image in inputs]).mean()\n"
                "        return [ImageRows(self.encode(i).rows - mean, i.layout) for i in inputs]"
            )
        },
    ),
    Broken(
        "results in another order than the images",
        "batch-equals-singles",
        "rows that differ",
        {
            "for image in inputs]": "for image in sorted(inputs, key=lambda i: i.pixels.mean())]",
        },
    ),
    Broken(
        "state of one image kept between threads",
        "threads",
        "",
        {
            "        columns, rows = grid\n": (
                "        import time\n        self.grid = grid\n        time.sleep(1e-4)\n"
                "        columns, rows = self.grid\n"
            ),
        },
    ),
    Broken(
        "three channels taken for granted",
        "odd-images",
        "RuntimeError",
        {'image.convert("RGB").resize(': "image.resize("},
    ),
    Broken(
        "a division by the shape of the image",
        "odd-images",
        "ZeroDivisionError",
        {
            "rows = grid\n": "rows = grid\n        image.width // (image.height // 20)\n",
        },
    ),
    Broken(
        "an image made small in place",
        "image-unchanged",
        "another one",
        {
            "rows = grid\n": "rows = grid\n        image.thumbnail((20, 20))\n",
        },
    ),
]
