// Classify texts with a model that `sonde export MODEL --onnx model.onnx` wrote:
//
//     ONNXRUNTIME_NODE_INSTALL=skip npm install
//     node classify.mjs model.onnx "Where is my parcel?" "I was charged twice"
//
// or one text a line from standard input. Prints one JSON object a text: label, probability, and those of all labels;
// for multi-label models the labels above their thresholds.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [model, ...given] = process.argv.slice(2);
if (!model) {
  console.error("usage: node classify.mjs MODEL.onnx [TEXT...]");
  process.exit(2);
}
const about = JSON.parse(readFileSync(model.replace(/\.onnx$/, ".about.json"), "utf8"));
const texts = given.length ? given : readFileSync(0, "utf8").split("\n").filter((line) => line);
const session = await InferenceSession.create(model);

/** Token ids of a batch, padded on the right, and the mask that says which are real. */
function encode(input) {
  const file = JSON.parse(readFileSync(join(dirname(model), input.tokenizer), "utf8"));
  const tokenizer = new Tokenizer(file, {});
  const rows = texts.map((text) => tokenizer.encode(text).ids);
  const width = Math.max(1, ...rows.map((row) => row.length));
  const ids = new BigInt64Array(rows.length * width).fill(BigInt(input.pad_id));
  const mask = new BigInt64Array(rows.length * width);
  rows.forEach((row, r) => row.forEach((id, t) => {
    ids[r * width + t] = BigInt(id);
    mask[r * width + t] = 1n;
  }));
  const shape = [rows.length, width];
  return { [input.ids]: new Tensor("int64", ids, shape), [input.mask]: new Tensor("int64", mask, shape) };
}

if (texts.length) {
  const { probabilities } = await session.run(Object.assign({}, ...about.inputs.map(encode)));
  const classes = about.labels.length;
  texts.forEach((text, row) => {
    const found = [...probabilities.data.slice(row * classes, (row + 1) * classes)];
    const best = found.indexOf(Math.max(...found));
    const label = about.multilabel
      ? about.labels.filter((_, k) => found[k] >= about.thresholds[k])
      : about.labels[best];
    console.log(JSON.stringify({ text, label, probability: found[best], probabilities: found }));
  });
}
