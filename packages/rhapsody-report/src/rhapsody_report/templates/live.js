"use strict";

// Updates the page while the run is in progress. Each event of the server contains the sections that
// have changed. Elements are changed in place instead of being replaced, so that the focus, the
// selection, the scroll position and open <details> remain.
(() => {
  const status = document.querySelector("#live [role=status]");
  const button = document.querySelector("#live button");
  const waiting = new Map(); // sections that were received and are not shown yet
  let [paused, updating, ended] = [false, false, ""];

  const source = new EventSource(`events${location.search}&version=${document.body.dataset.version}`);
  source.addEventListener("open", showStatus);
  source.addEventListener("error", showStatus);
  source.addEventListener("message", ({ data }) => {
    const event = JSON.parse(data);
    document.title = event.title;
    document.getElementById("run").textContent = event.run;
    for (const [id, html] of Object.entries(event.sections)) {
      waiting.set(id, html);
    }
    if (event.ended) {
      source.close();
      button.remove();
      paused = false;
      ended = event.outcome;
    }
    showStatus();
    update();
  });
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume updates" : "Pause updates";
    showStatus();
    update();
  });
  document.addEventListener("visibilitychange", update);

  // Screen readers announce the text, so it changes only with the state.
  function showStatus() {
    let text = "Live: this page follows the run.";
    if (ended) {
      text = `The run has ended (${ended}). This page no longer changes.`;
    } else if (source.readyState !== EventSource.OPEN) {
      text = "The connection to the run is lost. The page tries to restore it.";
    } else if (paused) {
      text = "Paused: the run continues, and this page does not change.";
    }
    if (status.textContent !== text) {
      status.textContent = text;
    }
  }

  async function update() {
    if (updating) {
      return;
    }
    updating = true;
    try {
      while (waiting.size > 0 && !paused && !document.hidden) {
        const found = [...waiting];
        const charts = [];
        waiting.clear();
        for (const [id, html] of found) {
          const section = document.getElementById(id);
          const fresh = section.cloneNode(false);
          fresh.innerHTML = html;
          morph(section, fresh, charts);
        }
        await Promise.all(charts.map(redraw));
        rhapsodyReport.draw(document);
      }
    } finally {
      updating = false;
    }
  }

  // Makes an element equal to another one with the same tag, and collects the charts in it whose
  // data have changed.
  function morph(old, fresh, charts) {
    const isChart = old.matches("[data-chart]");
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !isChart && name !== "open") {
        old.removeAttribute(name);
      }
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && name !== "open") {
        old.setAttribute(name, value);
      }
    }
    if (isChart) {
      if (dataOf(old) !== dataOf(fresh)) {
        charts.push(old);
      }
      return;
    }
    const nodes = [...old.childNodes];
    const freshNodes = [...fresh.childNodes];
    for (const [index, node] of freshNodes.entries()) {
      const former = nodes[index];
      if (former === undefined) {
        old.append(node);
      } else if (former.nodeName !== node.nodeName) {
        former.replaceWith(node);
      } else if (former.nodeType === Node.ELEMENT_NODE) {
        morph(former, node, charts);
      } else if (former.nodeValue !== node.nodeValue) {
        former.nodeValue = node.nodeValue;
      }
    }
    for (const node of nodes.slice(freshNodes.length)) {
      node.remove();
    }
  }

  // Returns the data of a chart without Bokeh's ids, which differ each time.
  function dataOf(plot) {
    return plot.nextElementSibling.textContent.replace(/"p\d+"/g, "");
  }

  // Draws a chart again. The former one stays visible until the new one is complete.
  async function redraw(plot) {
    if (plot.drawn === undefined) {
      return; // it will be drawn when its <details> is opened
    }
    const former = await plot.drawn;
    if (plot.closest("details:not([open])") !== null) {
      plot.replaceChildren();
      delete plot.drawn;
    } else {
      const hidden = plot.cloneNode(false);
      delete hidden.dataset.chart;
      hidden.style.cssText = `position: absolute; visibility: hidden; width: ${plot.clientWidth}px`;
      plot.after(hidden);
      const view = await rhapsodyReport.embed(hidden);
      const { start, end, reset_start: first, reset_end: last } = former.model.x_range;
      if (start !== first || end !== last) { // the user has zoomed
        view.model.x_range.setv({ start, end });
      }
      while (!view.is_idle) {
        await new Promise((done) => { setTimeout(done, 10); });
      }
      plot.replaceChildren(...hidden.childNodes);
      plot.drawn = Promise.resolve(view);
      hidden.remove();
    }
    const { document: bokeh } = former.model;
    bokeh.clear();
    Bokeh.documents.splice(Bokeh.documents.indexOf(bokeh), 1);
  }
})();
