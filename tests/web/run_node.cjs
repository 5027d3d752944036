// node run_node.cjs CASES: each case's model, run by onnxruntime-node; prints its outputs as JSON.
const fs = require("fs");
const ort = require("onnxruntime-node");

const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, bool: Uint8Array };

function makeTensor({ type, dims, data }) {
  if (type === "string") return new ort.Tensor(type, data, dims);
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(data, BigInt), dims);
  return new ort.Tensor(type, ARRAYS[type].from(data), dims);
}

async function run({ model, feeds }) {
  const session = await ort.InferenceSession.create(model);
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, makeTensor(feed)]));
  const outputs = await session.run(tensors);
  return Object.fromEntries(Object.entries(outputs).map(([name, output]) =>
    [name, Array.from(output.data, (value) => (typeof value === "bigint" ? Number(value) : value))]));
}

(async () => {
  const answers = [];
  for (const one of JSON.parse(fs.readFileSync(process.argv[2], "utf8"))) answers.push(await run(one));
  console.log(JSON.stringify(answers));
})();
