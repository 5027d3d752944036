// node run_node.cjs TASK: runs each case's model by onnxruntime-node or onnxruntime-web; prints the outputs as JSON.
const fs = require("fs");

const task = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ort = require(task.library);
if (task.library === "onnxruntime-web") ort.env.wasm.numThreads = 1;

const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, bool: Uint8Array };

function makeTensor({ type, dims, data }) {
  if (type === "string") return new ort.Tensor(type, data, dims);
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(data, BigInt), dims);
  return new ort.Tensor(type, ARRAYS[type].from(data), dims);
}

async function run({ model, feeds }) {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(model)));
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, makeTensor(feed)]));
  const outputs = await session.run(tensors);
  return Object.fromEntries(Object.entries(outputs).map(([name, output]) =>
    [name, Array.from(output.data, (value) => (typeof value === "bigint" ? Number(value) : value))]));
}

(async () => {
  const answers = [];
  for (const one of task.cases) answers.push(await run(one));
  console.log(JSON.stringify(answers));
})();
