"use strict";

// Draws the charts of the report with Bokeh. The data of a chart is in a script element after its
// plot. A chart in a closed <details> is drawn when it is opened.
const rhapsodyReport = (() => {
  // Draws all charts in an element. The live page calls it for each section that it replaces.
  function draw(element) {
    for (const plot of element.querySelectorAll("[data-chart]")) {
      const closed = plot.closest("details:not([open])");
      if (closed !== null) {
        closed.addEventListener("toggle", () => draw(closed), { once: true });
      } else if (!plot.hasChildNodes()) {
        embed(plot);
      }
    }
  }

  async function embed(plot) {
    const item = JSON.parse(plot.nextElementSibling.textContent);
    const views = await Bokeh.embed.embed_item(item, plot);
    const [view] = views;
    if (window.matchMedia("(pointer: coarse)").matches) {
      view.model.toolbar.tools.forEach((tool) => { tool.active &&= tool.type === "HoverTool"; });
    }
    for (const button of plot.closest("figure").querySelectorAll("[data-zoom]")) {
      button.onclick = () => zoom(view.model.x_range, button.dataset.zoom);
    }
  }

  // Changes the horizontal range of a chart.
  function zoom(range, how) {
    const { start, end, reset_start: first, reset_end: last } = range;
    const width = end - start;
    let [from, to] = [start, end];
    if (how === "in") {
      [from, to] = [start + width / 4, end - width / 4];
    } else if (how === "out") {
      [from, to] = [start - width / 2, end + width / 2];
    } else if (how === "left" || how === "right") {
      const step = how === "left" ? -width / 2 : width / 2;
      const move = Math.min(Math.max(step, first - start), last - end);
      [from, to] = [start + move, end + move];
    } else {
      [from, to] = [first, last];
    }
    range.setv({ start: Math.max(from, first), end: Math.min(to, last) });
  }

  // Bokeh reads the colors of text from the style sheet when it draws a chart.
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of document.querySelectorAll("[data-chart]")) {
      plot.replaceChildren();
    }
    draw(document);
  });

  return { draw };
})();

rhapsodyReport.draw(document);
