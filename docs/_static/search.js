// Ranks the page that has the searched title first, and pages for users above those for
// contributors and authors of plugins.

var Scorer = {
  // A result is [docname, title, anchor, description, score, filename].
  score: ([docname, title, , , score]) => {
    const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_./-]+/gu) || [];
    const query = words(new URLSearchParams(window.location.search).get("q") || "");
    const found = words(title);
    if (found.join(" ") === query.join(" ")) score += 100;
    else if (query.length && query.every((word) => found.includes(word))) score += 10;
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
