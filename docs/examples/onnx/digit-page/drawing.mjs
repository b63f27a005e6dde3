// What is drawn on a canvas, as scikit-learn's digits are: 8 x 8 values from 0 (paper) to 1 (ink), the digit as large as
// the square and in its middle; null where nothing is drawn.
export function pixels(canvas, size = 8) {
  const { width, height } = canvas, { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let left = width, right = -1, top = height, bottom = -1;
  const ink = (x, y) => data[4 * (y * width + x) + 3] / 255;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (ink(x, y) > 0.5) {
        left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
      }
  if (right < 0) return null;
  const side = Math.max(right - left, bottom - top) + 1, cell = side / size, values = new Float32Array(size * size);
  const x0 = (left + right + 1 - side) / 2, y0 = (top + bottom + 1 - side) / 2;
  for (let y = top; y <= bottom; y++)
    for (let x = left; x <= right; x++)
      values[size * Math.floor((y - y0) / cell) + Math.floor((x - x0) / cell)] += ink(x, y) / cell ** 2;
  return values.map((value) => Math.min(value, 1));
}

// Makes a canvas one that is drawn on, by mouse, pen or finger; `changed` is called when a stroke ends.
export function drawable(canvas, changed) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(pen, { lineWidth: canvas.width / 11, lineCap: "round", lineJoin: "round", strokeStyle: "#1b1b1b" });
  const at = (event) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath();
    pen.moveTo(...at(event));
    pen.lineTo(...at(event));
    pen.stroke();
  };
  canvas.onpointermove = (event) => {
    if (!event.buttons) return;
    pen.lineTo(...at(event));
    pen.stroke();
  };
  canvas.onpointerup = changed;
}
