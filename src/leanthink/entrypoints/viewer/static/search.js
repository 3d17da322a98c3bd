// Finds a text in the tokens of a thought; a match is the tokens that it touches.

export function find(texts, wanted) {
  const needle = wanted.toLowerCase();
  if (!needle) return [];
  let joined = "";
  const starts = texts.map((text) => {
    const start = joined.length;
    joined += text.toLowerCase();
    return start;
  });
  const matches = [];
  let token = 0;
  for (let at = joined.indexOf(needle); at >= 0; at = joined.indexOf(needle, at + needle.length)) {
    while (token + 1 < starts.length && starts[token + 1] <= at) token++;
    let last = token;
    while (last + 1 < starts.length && starts[last + 1] < at + needle.length) last++;
    matches.push({ first: token, last });
  }
  return matches;
}
