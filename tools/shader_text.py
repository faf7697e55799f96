"""What a Metal shader's text is made of: tokens, functions, and statements where types are named.

No parser of C++: just enough of its form to check shaders with. Positions and lines are those of
the text, because what is left out (comments, strings, attributes) becomes spaces.
"""

import re
from typing import NamedTuple

SPACES = {"device", "constant", "threadgroup", "thread"}

_LEFT_OUT = re.compile(
    r'//(?:\\\n|[^\n])*|/\*.*?(?:\*/|\Z)|\bR"([^(\s]*)\(.*?(?:\)\1"|\Z)'
    r'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+\'''', re.DOTALL)
_ATTRIBUTE = re.compile(r"\[\[\s*(\w*)[^\[\]]*\]\]")
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d[\w.]*|::|->|&&|\|\||<<|\.\.\.|[-+*/%&|^=!<>]=|\S")
_TYPE_WORDS = {"struct", "class", "union", "enum"}
_NOT_A_NAME = {"alignas", "decltype", "noexcept", "requires", "static_assert", "__attribute__"}


class Malformed(Exception):
    """The text's brackets do not pair up, so nothing can be said about its form."""

    def __init__(self, line, what):
        super().__init__(what)
        self.line = line


class Token(NamedTuple):
    text: str
    at: int
    line: int


class Function(NamedTuple):
    """A definition; `owner` is the struct it belongs to, or "". The body's braces are tokens."""
    name: str
    owner: str
    is_kernel: bool
    line: int
    begin: int
    end: int


class Statement(NamedTuple):
    """Tokens [begin, end) that may begin with a declaration; `in_parentheses` of an if or a for."""
    begin: int
    end: int
    in_parentheses: bool = False


def is_word(text):
    return text[:1].isalpha() or text[:1] == "_"


def _spaces(text):
    return re.sub(r"[^\n]", " ", text)


def without_comments(text, keep_strings=True):
    def blank(match):
        keep = keep_strings and match[0][0] not in "/R"
        return match[0] if keep else _spaces(match[0])
    return _LEFT_OUT.sub(blank, text)


def without_attributes(text):
    """[[kernel]] becomes the word; other attributes say nothing about a text's form."""
    def blank(match):
        word = "kernel" if match[1] == "kernel" else ""
        return word + _spaces(match[0])[len(word):]
    return _ATTRIBUTE.sub(blank, text)


def raw_strings(text):
    """Where strings begin that may hold anything, even shaders."""
    return [match.start() for match in _LEFT_OUT.finditer(text) if match[0].startswith("R")]


class ShaderText:
    """`code` is the text without comments, strings and attributes; `directives` begin with #."""

    def __init__(self, text):
        self.code = without_attributes(without_comments(text, keep_strings=False))
        self.directives = [match[0] for match in _DIRECTIVE.finditer(self.code)]
        form = _DIRECTIVE.sub(lambda match: _spaces(match[0]), self.code)
        self.tokens, line, at = [], 1, 0
        for match in _TOKEN.finditer(form):
            line += form.count("\n", at, match.start())
            at = match.start()
            self.tokens.append(Token(match[0], at, line))
        self.texts = [token.text for token in self.tokens] + [""]
        self.pairs = self._pair_brackets()
        self.functions, self.statements, self.parameter_lists = [], [], []
        self._walk()

    def function_at(self, index):
        """The innermost function whose body has the token, or None."""
        around = [f for f in self.functions if f.begin < index < f.end]
        return max(around, key=lambda f: f.begin, default=None)

    def after_angles(self, index):
        """What follows the template arguments that begin at `index`; `index` itself if none do."""
        if self.texts[index] != "<":
            return index
        depth, i = 0, index
        while i < len(self.tokens) and self.texts[i] not in {";", "{", "}", ")", "]"}:
            depth += {"<": 1, ">": -1}.get(self.texts[i], 0)
            i = self.pairs[i] + 1 if self.texts[i] in {"(", "["} else i + 1
            if depth == 0:
                return i
        return index

    def after_words(self, index, but=frozenset()):
        """What follows the words from `index`, as of a type and a name, and their arguments."""
        texts = self.texts
        while texts[index] == "::" or is_word(texts[index]) and texts[index] not in but:
            index = self.after_angles(index + 1)
        return index

    def before_angles(self, index):
        """What precedes the template arguments that end at `index`; `index` itself if none do."""
        depth, i = 0, index
        while i >= 0 and self.texts[i] not in {";", "{", "}", "(", "["}:
            depth += {">": 1, "<": -1}.get(self.texts[i], 0)
            i = self.pairs[i] - 1 if self.texts[i] in {")", "]"} else i - 1
            if depth == 0:
                return i
        return index

    def _pair_brackets(self):
        pairs, opened, closing = {}, [], {")": "(", "]": "[", "}": "{"}
        for i, token in enumerate(self.tokens):
            if token.text in closing.values():
                opened.append(i)
            elif token.text in closing:
                if not opened or self.texts[opened[-1]] != closing[token.text]:
                    raise Malformed(token.line, f"'{token.text}' closes nothing")
                pairs[i] = opened.pop()
                pairs[pairs[i]] = i
        if opened:
            token = self.tokens[opened[-1]]
            raise Malformed(token.line, f"'{token.text}' is never closed")
        return pairs

    def _after_template(self, index):
        while self.texts[index] == "template" and self.after_angles(index + 1) != index + 1:
            index = self.after_angles(index + 1)
        return index

    def _name_and_parameters(self, begin, end):
        """Where the function's name and its parameter list are in the head of a declaration."""
        name, i = None, begin
        while i < end:
            text = self.texts[i]
            if text == "operator":
                # The name may itself be a pair of parentheses.
                opening = i + 3 if self.texts[i + 1] == "(" else self.texts.index("(", i)
                return (i, opening) if opening < end else None
            if text == "=":
                return None
            if text in _NOT_A_NAME and self.texts[i + 1] == "(":
                i = self.pairs[i + 1]
            elif text == "(":
                return (name, i) if name is not None else None
            elif is_word(text):
                name = i
                i = self.after_angles(i + 1) - 1
            i += 1
        return None

    def _kind_of_scope(self, outer, begin, end):
        words = self.texts[begin:end]
        if _TYPE_WORDS & set(words[:3]) and "(" not in words:
            return "type"
        if outer in {"function", "block", "initializer"}:
            return "block" if not words and outer != "initializer" else "initializer"
        if "namespace" in words or words == ["extern"]:
            return "namespace"
        has_body = words and (words[-1] in {")", "const", "noexcept", *SPACES} or "->" in words)
        is_function = has_body and self._name_and_parameters(begin, end)
        return "function" if is_function else "initializer"

    def _walk(self):
        scopes = [("namespace", "", 0, None)]  # kind, name, where its head began, its function
        head = i = 0
        while i < len(self.tokens):
            text, kind = self.texts[i], scopes[-1][0]
            if text == "(" or text == "[":
                condition = self.texts[head:i] in (["if"], ["for"], ["while"], ["switch"],
                                                   ["if", "constexpr"])
                i = self.pairs[i]
                if condition:
                    self.statements.append(Statement(self.pairs[i] + 1, i, True))
                    head = i + 1
            elif text == "{":
                scopes.append(self._open(kind, scopes, head, i))
                head = i + 1
            elif text == "}":
                kind, _, before, function = scopes.pop()
                head = before if kind == "initializer" else i + 1
                if function:
                    self.functions.append(function)
            elif text == ";":
                begin = self._after_template(head)
                self._declaration(begin, i, kind in {"namespace", "type"})
                head = i + 1
            elif i == head and text in {"else", "do"}:
                head = i + 1
            elif text == ":" and self.texts[head] in {"case", "default", "public", "private",
                                                      "protected"}:
                head = i + 1
            i += 1

    def _open(self, outer, scopes, head, brace):
        begin = self._after_template(head)
        kind, name, function = self._kind_of_scope(outer, begin, brace), "", None
        if kind == "type":
            words = [w for w in self.texts[begin:brace] if is_word(w) and w not in SPACES]
            name = words[1] if len(words) > 1 else ""
        elif kind == "function":
            at, _ = self._name_and_parameters(begin, brace)
            owner = next((name for kind_, name, *_ in reversed(scopes) if kind_ == "type"), "")
            if self.texts[at - 1] == "::":
                owner = self.texts[at - 2]
            operator = self.texts[at + 1] if self.texts[at] == "operator" else ""
            function = Function(self.texts[at] + operator, owner,
                                "kernel" in self.texts[begin:at], self.tokens[at].line,
                                brace, self.pairs[brace])
            self._declaration(begin, brace, True)
        return kind, name, head, function

    def _declaration(self, begin, end, may_be_function):
        if begin == end or self.texts[begin] in {"using", "static_assert"}:
            return
        self.statements.append(Statement(begin, end))
        found = may_be_function and self._name_and_parameters(begin, end)
        if found:
            self.parameter_lists.append((found[1] + 1, self.pairs[found[1]]))
