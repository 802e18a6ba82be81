# compute.py: an interpreter at work: integers, strings, dictionaries, objects. Prints "python CHECKSUM".
import sys

scale = int(sys.argv[1]) if len(sys.argv) > 1 else 100


class Node:
    __slots__ = ("left", "right", "key")

    def __init__(self, key):
        self.key, self.left, self.right = key, None, None


def insert(root, key):
    while True:
        side = "left" if key < root.key else "right"
        below = getattr(root, side)
        if below is None:
            setattr(root, side, Node(key))
            return
        root = below


def depth(node):
    return 1 + max(depth(node.left), depth(node.right)) if node else 0


total, seed = 0, 12345
for turn in range(max(1, 10 * scale // 100)):
    words = {}
    root = Node(1 << 30)
    for i in range(4000):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        insert(root, seed)
        word = "w%d" % (seed % 997)
        words[word] = words.get(word, 0) + len(word)
    text = " ".join(f"{k}={v}" for k, v in sorted(words.items()))
    total += sum(ord(c) for c in text) + depth(root) + sum(x * x % 7 for x in range(20000))
print("python %x" % total)
