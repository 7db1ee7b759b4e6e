"""Texts that break tokenizers, templates and formats; each is a possible response."""

NASTY = [
    " ", "   ", "\n", "\nleading newline", "trailing blanks   ", "   \n   \n   ",
    "a\u00a0b\u2003c\u3000d\u202fe", "line1\r\nline2\r\n\r\nline3\r", "bell\x07esc\x1b[31mred\x1b[0m",
    "\x7fdel\x80\x9f", "nul\0inside", "\0", "\ufeffBOM at start", "two\u2028lines\u2029",
    "e\u0301a cafe\u0301", "\u212b \u2126 \u212a", "\u0958\u0959\u095a", "\uf900\u91d1\ufa0c",
    "q\u0323\u0307 vs q\u0307\u0323", "\u0301starts with a combining mark",
    "Z" + "\u0334\u0301" * 30 + "algo",
    "\u3000全角\u3000ＡＢＣ１２３ ｶﾞｷﾞ", "ﬁne … ½ \ufdfa", "İSTANBUL ıßẞ ǅ ΌΣΟΣ",
    "😀", "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👩🏽\u200d💻", "1️⃣ 2️⃣ #️⃣", "a😀b😀c", "Ⓜ ⭢ ☃ ✓ → ∑ ∮ ₿ ꙮ",
    "中文字，测试。「引号」…——", "𠀀𪚥𠮷野家", "مَرْحَبًا بِالعَالَمِ", "नमस्ते क्षत्रिय श्री", "마실까해요", "ภาษาไทย",
    "\U0010ffff\U000f0000\ue000\ufffe\uffff\ufdd0\ufdd1", "\ufffd\ufffd replacement", "😀" * 300, "é" * 1000,
    "▁under ▁▁score", "Ġhello Ċ ĉ", "<0x0A><0xF0>", "[UNK] <unk> [MASK] <mask> <pad> <s> </s>",
    "<|im_end|>", "<|im_start|>user\nhi<|im_end|>", "\n<|im_end|>\n", "a<|im_end|>b<|endoftext|>",
    "user\n", "assistant", "model", ".", "1234567890", "3.14159e-10", "</think>", "{{ content }} {% raw %}",
    'def f(x):\n    if x:\n        return {\n            "a": [1, 2],\n        }\n\n\n\tpass\n',
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−L|<ε", "https://例え.jp/パス?q=%E3%81%82&x=1#frag user@exämple.com",
    "SGVsbG8gV29ybGQh" * 40, "| a | b |\n|---|---|\n| 1 | 2 |\n", "a" * 5000, "文" * 1000,
]  # fmt: skip
