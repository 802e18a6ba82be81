// compute.js: work for V8's compiled code: numeric loops, strings, objects and properties, closures, typed arrays, JSON.
// Prints "node CHECKSUM"; the argument scales it (100: about half a second natively).
'use strict';
const scale = (Number(process.argv[2]) || 100) / 100;
let sum = 0;
const mix = (v) => { sum = ((((sum << 5) | (sum >>> 27)) ^ (v | 0)) + 0x9e3779b9) | 0; };

function mandelbrot(size) {
    let inside = 0;
    for (let py = 0; py < size; py++) {
        for (let px = 0; px < size; px++) {
            const cr = 3 * px / size - 2, ci = 2 * py / size - 1;
            let zr = 0, zi = 0, n = 0;
            while (n < 64 && zr * zr + zi * zi < 4) {
                const t = zr * zr - zi * zi + cr;
                zi = 2 * zr * zi + ci;
                zr = t;
                n++;
            }
            inside += n;
        }
    }
    mix(inside);
}

function sieve(limit) {
    const composite = new Uint8Array(limit + 1);
    let count = 0;
    for (let i = 2; i <= limit; i++) {
        if (composite[i]) continue;
        count++;
        for (let k = i + i; k <= limit; k += i) composite[k] = 1;
    }
    mix(count);
}

function strings(count) {
    const words = new Map();
    let parts = [];
    for (let i = 1; i <= count; i++) {
        parts.push(`${i}:${String.fromCharCode(97 + i % 26)}`);
        if (parts.length < 64) continue;
        const s = parts.join(',');
        for (const m of s.matchAll(/\d+:([a-z])/g)) words.set(m[1], (words.get(m[1]) || 0) + s.length);
        mix(s.replace(/1/g, 'one').toUpperCase().length);
        parts = [];
    }
    for (const key of [...words.keys()].sort()) mix(words.get(key));
}

class Point {
    constructor(x, y) { this.x = x; this.y = y; }
    add(o) { return new Point(this.x + o.x, this.y + o.y); }
    norm() { return this.x * this.x + this.y * this.y; }
}

function objects(count) {
    const list = [];
    let total = 0;
    for (let i = 1; i <= count; i++) list[i % 1000] = new Point(i % 17, i % 23).add(new Point(1, i % 5));
    for (let round = 0; round < 20; round++) for (const p of list) total += p.norm();
    list.sort((a, b) => a.norm() - b.norm());
    mix(total);
    mix(list[0].norm() + list[list.length - 1].norm());
    const tree = JSON.parse(JSON.stringify(list.map((p, i) => ({ id: i, at: [p.x, p.y], name: 'p' + i }))));
    mix(tree.reduce((a, o) => a + o.at[0] * o.id + o.name.length, 0));
}

function closures(count) {
    const counter = (step) => { let n = 0; return (k) => (n = (n + step * k) | 0); };
    const fs = Array.from({ length: 16 }, (_, i) => counter(i + 1));
    let last = 0;
    for (let i = 1; i <= count; i++) last = fs[i % 16](i % 7);
    mix(last);
    const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
    mix(fib(24));
}

for (let i = 0; i < Math.max(1, Math.floor(4 * scale)); i++) {
    mandelbrot(160);
    sieve(400000);
    strings(30000);
    objects(150000);
    closures(1500000);
}
console.log('node ' + (sum >>> 0).toString(16).padStart(8, '0'));
