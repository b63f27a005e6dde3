"""The examples of docs/examples, as a reader runs them."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deepcompression.data import digits
from deepcompression.export import target_of
from deepcompression.models import digits_net

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "onnx"
ONNXRUNTIME_WEB = "onnxruntime-web@1.30.0"
STROKES = {  # as a hand draws them, on a canvas of 256
    0: [[(128 + 62 * np.sin(t), 128 - 88 * np.cos(t)) for t in np.linspace(0, 2 * np.pi, 40)]],
    3: [[(75, 60), (125, 40), (170, 70), (160, 105), (115, 122), (165, 140), (175, 185), (125, 216), (70, 195)]],
    4: [[(140, 40), (70, 150), (190, 150)], [(150, 100), (150, 220)]],
    7: [[(70, 50), (186, 50), (120, 216)]],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A net for digits whose weights are few values, half of them zero, and its file."""
    torch.manual_seed(0)
    net, (images, labels) = digits_net(), digits().train
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for some in torch.cat([torch.randperm(len(images)) for _ in range(15)]).split(64):
        optimizer.zero_grad()
        F.cross_entropy(net(images[some]), labels[some]).backward()
        optimizer.step()
    for layer in (net.conv1, net.conv2, net.fc1, net.fc2):
        weight = layer.weight.data
        step = weight.abs().max() / 31
        layer.weight.data = torch.where(weight.abs() > weight.abs().median(), (weight / step).round() * step, 0.0)
    path = tmp_path_factory.mktemp("examples") / "model.onnx"
    made = target_of("onnx").export(net.eval(), [images[:16]], path)
    assert made.bytes < made.float_bytes / 4
    return net, path


@pytest.fixture
def web(request: pytest.FixtureRequest) -> Path:
    """A folder with node_modules, of npm's registry; kept from one session of tests to the next."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(ONNXRUNTIME_WEB.replace("@", "-"))
    if not (folder / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs").exists():
        install = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run([*install, ONNXRUNTIME_WEB], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"npm does not install {ONNXRUNTIME_WEB}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder / "node_modules"


@pytest.fixture
def page(model: tuple[nn.Module, Path], web: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the page, its folder as README.md makes it."""
    folder = shutil.copytree(EXAMPLES / "digit-page", tmp_path / "page")
    shutil.copy(model[1], folder / "model.onnx")
    (folder / "node_modules").symlink_to(web)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.slow
def test_a_digit_drawn_on_a_page_is_recognised_from_the_compressed_file(
    page: str, model: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    """onnxruntime-web in a browser gives PyTorch's answer for what is drawn, and that answer is right."""
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium on this machine")
    net, path = model
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 620})
        troubles: list[str] = []
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(page)
        tab.wait_for_function("document.getElementById('file').textContent.includes('bytes')", timeout=60_000)
        assert f"{path.stat().st_size:,} bytes" in tab.locator("#file").inner_text()
        answers = {digit: _drawn(tab, strokes) for digit, strokes in STROKES.items()}
        tab.screenshot(path=os.environ.get("SCREENSHOT") or tmp_path / "page.png")
        browser.close()
    assert troubles == []
    assert [answer for answer, _, _ in answers.values()] == [f"This is a {digit}." for digit in STROKES]
    for _, values, shares in answers.values():
        with torch.no_grad():
            wanted = F.softmax(net(torch.tensor(values).reshape(1, 1, 8, 8)), 1)[0]
        assert np.allclose(shares, wanted, atol=1e-4)


def _drawn(tab: Any, strokes: list[list[tuple[float, float]]]) -> tuple[str, list[float], list[float]]:
    """What the page says of a drawing, what the net was given, and the shares of the ten digits."""
    tab.locator("#clear").click()
    box = tab.locator("#drawing").bounding_box()
    for (x, y), *rest in strokes:
        tab.mouse.move(box["x"] + x, box["y"] + y)
        tab.mouse.down()
        for x, y in rest:
            tab.mouse.move(box["x"] + x, box["y"] + y, steps=3)
        tab.mouse.up()
    tab.wait_for_function("document.querySelectorAll('#scores tr').length === 10")
    given = "import('./drawing.mjs').then(one => Array.from(one.pixels(document.getElementById('drawing'))))"
    shares = "Array.from(document.querySelectorAll('#scores meter'), one => Number(one.getAttribute('value')))"
    tab.wait_for_timeout(200)  # of two strokes the second one's answer
    return tab.locator("#answer").inner_text(), tab.evaluate(given), tab.evaluate(shares)


@pytest.mark.slow
def test_the_example_in_cpp_gives_pytorchs_outputs(model: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """Compiled where onnxruntime's headers are: in the folder that ONNXRUNTIME_INCLUDE names, or the compiler's own."""
    import onnxruntime

    compiler, folder = shutil.which("c++"), os.environ.get("ONNXRUNTIME_INCLUDE", "")
    given = ["-I", folder] if folder else []
    asked = [compiler or "c++", *given, "-E", "-x", "c++", "-include", "onnxruntime_cxx_api.h", os.devnull]
    if compiler is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("no onnxruntime_cxx_api.h on this machine: ONNXRUNTIME_INCLUDE names its folder")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "run"
    build = [compiler, "-std=c++17", "-Wall", "-Werror", EXAMPLES / "run.cpp", *given, tmp_path / "libonnxruntime.so.1"]
    done = subprocess.run(
        [*build, f"-Wl,-rpath,{tmp_path}", "-o", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    net, path = model
    sample = digits().test[0][:1]
    text = " ".join(f"{value:.9g}" for value in sample.flatten().tolist())
    ran = subprocess.run([program, path], input=text, capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert np.allclose([float(line) for line in ran.stdout.split()], net(sample)[0], atol=1e-4)
