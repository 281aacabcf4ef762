// Perfetto's trace processor, the WebAssembly that its UI runs, asked by SQL.
// Usage: node trace_processor.mjs FOLDER TRACE < QUERIES   (a JSON list of SQL; prints a JSON list of lists of rows)
// FOLDER holds engine_bundle.node.js, engine.mjs and trace_processor.wasm (tools/trace-processor.sh).
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

const [folder, trace] = process.argv.slice(2);
const bundle = join(folder, "engine_bundle.node.js");
const wasm = readFileSync(join(folder, "trace_processor.wasm"));
// What the worker asks its surroundings for.
const worker = { location: { href: pathToFileURL(resolve(bundle)).href } };
globalThis.self = worker;
globalThis.WorkerGlobalScope = function () {};
globalThis.XMLHttpRequest = class {
  open() {}
  send() {
    this.response = wasm.buffer.slice(wasm.byteOffset, wasm.byteOffset + wasm.byteLength);
  }
};
console.log = console.warn = (...words) => process.stderr.write(words.join(" ") + "\n");
vm.runInThisContext(readFileSync(bundle, "utf8"), { filename: bundle });

const { EngineBase } = await import(pathToFileURL(resolve(folder, "engine.mjs")));
const { port1, port2 } = new MessageChannel();
class Engine extends EngineBase {
  id = "test";
  mode = "WASM";
  rpcSendRequestBytes(data) {
    port1.postMessage(data);
  }
}
const engine = new Engine();
port1.on("message", (data) => engine.onRpcResponseBytes(data));
await new Promise((done) => setTimeout(done, 1500));
worker.onmessage({ data: port2 });

const data = readFileSync(trace);
for (let at = 0; at < data.length; at += 1 << 24) await engine.parse(new Uint8Array(data.subarray(at, at + (1 << 24))));
await engine.notifyEof();
const answers = [];
for (const sql of JSON.parse(readFileSync(0, "utf8"))) {
  const result = await engine.query(sql);
  const rows = [];
  const columns = result.columns();
  for (const row = result.iter({}); row.valid(); row.next())
    rows.push(Object.fromEntries(columns.map((name) => [name, row.get(name)])));
  answers.push(rows);
}
process.stdout.write(JSON.stringify(answers, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
process.exit(0);
