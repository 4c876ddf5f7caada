"""Texts by which a converted vocabulary is compared with the model's own tokenizer.

Each part tries one thing that splitting rules and vocabularies differ in. A part's name is what a message names.
Written for this purpose.
"""

from __future__ import annotations

from collections.abc import Mapping

PROOF_TEXTS: Mapping[str, str] = {
    "English": "The quick brown fox jumped over thirteen lazy dogs; nobody cared. Did it matter, after all?",
    "contractions": "They didn't see; we'll go, I'm sure it's theirs. WE'LL SEE, I'M SURE. rock 'n' roll, o'clock",
    "numbers": "1 22 333 4444 55555 3.14159 1,000,000.50 2024-11-23 12:30 a1b2c3 0xFF 1e-9 +49 30 1234567",
    "spaces": "one  two   three    four\ttab\t\ttabs \t mixed  end ",
    "lines": "line\nnext\n\nparagraph\n\n\nthree\r\nwindows\r\n\r\nagain \n trailing\n",
    "code": (
        'def f(x: int) -> str:\n\treturn f"{x!r:>10}"  # comment\n'
        "for (i=0;i<n;++i){a[i]+=b[i]<<2;}\n<a href='x'>y</a>"
    ),
    "punctuation": (
        "Well... (really?!) -- \"quoted\" 'single' [brackets] {braces} <angles> "
        "a/b\\c @user #tag $5 50% ^ & * _ ~ `"
    ),
    "names": "CamelCase snake_case HTTPServer XMLHttpRequest iPhone kebab-case __init__ MixedUPCase ABC",
    "markdown": "# Title\n\n- item\n  - nested\n\n| a | b |\n|---|---|\n\n```py\nprint(1)\n```\n**bold** _it_ [x](y)",
    "German": "Größe, Übermut und Straße: schöne Grüße aus Köln, außerdem 3,5 Prozent.",
    "French": "L'été à Noël, c'est où ? Ça coûte 5 €, déjà vu, naïve, œuvre et façade.",
    "Spanish": "¿Dónde está el niño? ¡Allí! Mañana será otro día, señor Núñez.",
    "Polish": "Zażółć gęślą jaźń; wczoraj łódź płynęła świetnie.",
    "Turkish": "Iğdır'da ışık, İstanbul'da yağmur; çöğüşü.",
    "Vietnamese": "Tiếng Việt có nhiều dấu: ngày mai trời sẽ mưa ở Huế.",
    "Greek": "Ελληνικά γράμματα, μικρά και ΚΕΦΑΛΑΙΑ· τι κάνεις;",
    "Russian": "Съешь ещё этих мягких французских булок, да выпей чаю. БОЛЬШЕ!",
    "Hebrew": "עברית מימין לשמאל, עם פסיקים ועוד.",
    "Arabic": "النص العربي هنا، مع أرقام ١٢٣ وعلامات؟",
    "Chinese": "中文字符测试，一二三。我们今天去北京吃饭！“引号”与（括号）",
    "Japanese": "日本語のテキストと漢字、カタカナとひらがな。ＡＢＣ１２３",
    "Korean": "한국어 문장입니다. 오늘은 날씨가 좋네요!",
    "emoji": "Nice 👍🏽 work 🎉🎉 🤦🏼\u200d♂️ 👨\u200d👩\u200d👧 flags 🇩🇪🇫🇷 ❤️ ✅",
    "symbols": "∑ x² ≤ ½ · π ≈ 3 → ∞ ± €£¥ © ™ № ♞ ░ ═ • … – — ‹›",
    "invisible": "no\u00a0break em\u2003space zero\u200bwidth soft\u00adhyphen \ufeffmark",
    # Letters with marks of their own, and capitals beyond ASCII inside a word.
    "marks": "हिन्दी में पाठ लिखा है। বাংলা ভাষা। ไม่มีช่องว่าง தமிழ்",
    "decomposed accents": "e\u0301te\u0301 a\u0300 la plage, u\u0308ber",
    "capitals beyond ASCII": "straßeÜBER ÀÉÎ naïveÉTÉ dzǅungla ДомДОМ",
}
_TEKKEN = 'llama.cpp\'s rule "tekken" leaves marks out of words and knows only ASCII capitals'
_MARKED = ("marks", "decomposed accents", "capitals beyond ASCII")
KNOWN_DIFFERENCES: Mapping[str, Mapping[str, str]] = {"tekken": dict.fromkeys(_MARKED, _TEKKEN)}
"""llama.cpp's name of a splitting rule -> part -> why it may be split otherwise (tests show that these are all)."""
NORMALIZED = ("decomposed accents", "invisible", "Japanese", "symbols", "marks", "Chinese")
"""Parts that a Unicode normaliser of the model's own tokenizer changes and llama.cpp, which has none, does not."""
