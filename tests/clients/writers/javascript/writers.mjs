// Writers and readers with a client's own defaults: ioredis, node-redis or GLIDE. Says in JSON what an application would have felt.
//
//     node writers.mjs CLIENT cluster|single ADDRESS:PORT
//
// Four writers set keys "CLIENT:<writer>:<n>" to "<n>" and read each back, until standard input ends.
import { setTimeout as sleep } from "node:timers/promises";

const WRITERS = 4;
const PAUSE_MS = 10;

const clients = {
  async "ioredis cluster"(host, port) {
    const { Cluster } = await import("ioredis");
    return new Cluster([{ host, port }]);
  },
  async "ioredis single"(host, port) {
    const { Redis } = await import("ioredis");
    return new Redis({ host, port });
  },
  async "node-redis cluster"(host, port) {
    const { createCluster } = await import("redis");
    return await createCluster({ rootNodes: [{ url: `redis://${host}:${port}` }] }).on("error", () => {}).connect();
  },
  async "node-redis single"(host, port) {
    const { createClient } = await import("redis");
    return await createClient({ url: `redis://${host}:${port}` }).on("error", () => {}).connect();
  },
  async "glide cluster"(host, port) {
    const { GlideClusterClient } = await import("@valkey/valkey-glide");
    return await GlideClusterClient.createClient({ addresses: [{ host, port }] });
  },
  async "glide single"(host, port) {
    const { GlideClient } = await import("@valkey/valkey-glide");
    return await GlideClient.createClient({ addresses: [{ host, port }] });
  },
};

const told = (error) => String(error.message || error).replace(/:\d{5}\b|\b\d+\.\d+\.\d+\.\d+/g, "…");

async function write(writer, client, over) {
  const seen = { writer, asked: 0, unacknowledged: [], errors: {}, stall_seconds: 0, stall_at: 0 };
  const count = (text) => (seen.errors[text] = (seen.errors[text] ?? 0) + 1);
  let last = Date.now();
  const progress = () => {
    const gap = (Date.now() - last) / 1000;
    if (gap > seen.stall_seconds) [seen.stall_seconds, seen.stall_at] = [gap, last / 1000];
  };
  while (!over.now) {
    const n = seen.asked++;
    const key = `${name}:${writer}:${n}`;
    try {
      await client.set(key, String(n));
      progress();
      last = Date.now();
      try {
        if (String(await client.get(key)) !== String(n)) count("get: another value");
      } catch (error) {
        count(`get: ${told(error)}`);
      }
    } catch (error) {
      seen.unacknowledged.push(n);
      count(`set: ${told(error)}`);
    }
    await sleep(PAUSE_MS);
  }
  progress();
  return seen;
}

const [, , name, mode, address] = process.argv;
const [host, port] = address.split(":");
const client = await clients[`${name} ${mode}`](host, Number(port));
client.on?.("error", () => {}); // what an application that does not want to die of it does
await client.set(`${name}:first`, "1");
console.log("writing");
const over = { now: false };
process.stdin.on("end", () => (over.now = true)).resume();
const all = await Promise.all(Array.from({ length: WRITERS }, (_, writer) => write(writer, client, over)));
process.stdout.write(JSON.stringify(all) + "\n", () => process.exit(0));
