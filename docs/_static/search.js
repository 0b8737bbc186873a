// Ranks the page that has the searched title first, and pages for users above those for
// contributors and authors of plugins. Pages that contain only some words of a question follow.
// `KEYWORDS` contains the words in the front matter of pages.

const root = (word) => word.replace(/(s|es|ed|ing)$/, "").slice(0, 7);
const wordsOf = (text) => text.toLowerCase().match(/[\p{L}\p{N}_./-]+/gu) || [];

var Scorer = {
  // A result is [docname, title, anchor, description, score, filename].
  score: ([docname, title, , , score]) => {
    const query = wordsOf(new URLSearchParams(window.location.search).get("q") || "");
    const found = wordsOf(title);
    if (found.join(" ") === query.join(" ")) score += 100;
    else if (query.length && query.every((word) => found.includes(word))) score += 10;
    const keywords = KEYWORDS[docname] || [];
    score += 3 * query.filter((word) => keywords.includes(root(word))).length;
    if (docname.endsWith("index")) score -= 6;
    if (/^(tutorial|how-to)\//.test(docname)) return score + 3;
    if (/^(contributing|decisions)\//.test(docname)) return score - 20;
    if (/^plugins\/|^reference\/capabilities|^reference\/api\/(backends|plugins|sdk)/.test(docname))
      return score - 3;
    return score;
  },

  // The other members are Sphinx's defaults, which a scorer must repeat.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

// Replaces Sphinx's search of words, which finds only pages that contain all of them.
const withSomeWords = (search) => (words, excluded) => {
  const all = search(words, excluded);
  if (words.size < 2) return all;
  const complete = new Set(all.map((result) => result[0]));
  const pages = new Map();
  for (const word of words) {
    const found = search(new Set([word]), excluded);
    const rare = Math.log(1 + 200 / (found.length + 1)); // a rare word says more
    for (const result of found) {
      if (!pages.has(result[0])) pages.set(result[0], [...result.slice(0, 4), 0, ...result.slice(5)]);
      const isKeyword = (KEYWORDS[result[0]] || []).includes(root(word));
      pages.get(result[0])[4] += rare * (isKeyword ? 2 : result[4] >= Scorer.title ? 1.5 : 1);
    }
  }
  for (const page of pages.values()) if (complete.has(page[0])) page[4] *= 1.3;
  const most = Math.max(...[...pages.values()].map((page) => page[4]));
  return [...pages.values()].filter((page) => page[4] > most / 2).map((page) => {
    page[4] *= 15 / most;
    return page;
  });
};

Search.performTermsSearch = withSomeWords(Search.performTermsSearch);
