// work.js TURNS
const zlib = require('zlib'), crypto = require('crypto'), fs = require('fs');
const text = fs.readFileSync('/bench/text', 'latin1').slice(0, 300000);
let sum = 0;
for (let t = 0; t < +process.argv[2]; t++) {
  const m = new Map();
  for (const w of text.split(/\W+/)) m.set(w, (m.get(w) || 0) + 1);
  const s = [...m].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([k, v]) => `${k}=${v}`).join();
  sum += parseInt(crypto.createHash('sha256').update(s).digest('hex').slice(0, 8), 16);
  const f = new Float64Array(100000), i32 = new Int32Array(100000);
  for (let i = 0; i < f.length; i++) { f[i] = Math.sin(i) * i; i32[i] = (f[i] * 1000) | 0; }
  f.sort(); sum += f[777] | 0; for (const x of i32) sum = (sum * 31 + x) | 0;
  sum += zlib.inflateSync(zlib.deflateSync(text)).length + JSON.stringify(JSON.parse(JSON.stringify([...m]))).length;
  class P { constructor(v) { this.v = v; } get g() { return this.v + 1; } }
  for (let i = 0; i < 200000; i++) sum += new P(i & 15).g;
  sum += Number(123456789n ** 200n % 1000000007n);
}
console.log(sum);
