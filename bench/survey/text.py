# text.py TURNS json|regex|dict|big|hash: what scripts do
import hashlib, json, re, sys, zlib

turns, what = int(sys.argv[1]), sys.argv[2]
words = open("/bench/text", encoding="ascii").read(400000).split()
out = []
for t in range(turns):
    if what == "json":
        doc = [{"id": i, "name": w, "list": [i, i / 7, None, True, w[::-1]], "in": {"a": w, "b": -i}} for i, w in enumerate(words[:3000])]
        text = json.dumps(doc, indent=1, sort_keys=True)
        back = json.loads(text)
        out.append((len(text), back == doc, zlib.crc32(text.encode())))
    elif what == "regex":
        text = " ".join(words[:20000])
        out.append((len(re.findall(r"\b(\w)\w*\1\b", text)), len(re.sub(r"([aeiou]{2,})|(\d+)", r"<\1>", text)),
                    len(re.split(r"(?:[^a-m]|x)+", text))))
    elif what == "dict":
        count = {}
        for w in words:
            count[w] = count.get(w, 0) + 1
            count[w[:3]] = count.get(w[:3], 0) + len(w)
        best = sorted(count.items(), key=lambda kv: (-kv[1], kv[0]))[:200]
        out.append(",".join(f"{k.upper()}:{v}" for k, v in best))
        out.append(len({w.title().replace("a", "bb").strip("xyz") for w in words}))
    elif what == "big":
        x = pow(3, 9000 + t) % (10 ** 3000)
        out.append((str(x)[:40], hex(x * x + 1)[-40:], x // 12345678901234567891 % 1000003, pow(7, x, 2 ** 521 - 1) % 1000003))
    elif what == "hash":
        data = " ".join(words).encode()
        for h in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b", "blake2s"):
            out.append(hashlib.new(h, data).hexdigest())
        out.append((zlib.crc32(data), zlib.adler32(data)))
for o in out:
    print(o)
