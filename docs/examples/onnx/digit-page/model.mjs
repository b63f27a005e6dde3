// An exported model.onnx in JavaScript: a function from floats and their shape to the outputs. Takes any model with one
// input and one output. `ort` is onnxruntime-web in a browser, onnxruntime-node in Node.js: both have the same names.
export async function open(ort, file) {
  const session = await ort.InferenceSession.create(file);
  const [input] = session.inputNames, [output] = session.outputNames;
  return async (values, shape) => {
    const found = await session.run({ [input]: new ort.Tensor("float32", values, shape) });
    return Array.from(found[output].data);
  };
}
