"use strict";
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const cases = JSON.parse(document.getElementById("viewer-data").textContent);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const chosen = part("case"), system = part("system"), truth = part("truth"), slide = part("slice");
  const status = part("status"), views = part("views");
  const state = { number: 0, sheets: null };

  const open = (source) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("a picture of the page cannot be read"));
    image.src = source;
  });

  // A label sheet as one byte a pixel.
  const labels = async (source) => {
    const image = await open(source);
    const canvas = document.createElement("canvas");
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height).data.filter((_, index) => index % 4 === 0);
  };

  const show = async (number) => {
    state.number = (number + cases.length) % cases.length;
    const one = cases[state.number];
    const names = Object.keys(one.images), results = Object.keys(one.results);
    const sheets = await Promise.all([...names.map((name) => open(one.images[name])), labels(one.truth),
      ...results.map((name) => labels(one.results[name]))]);
    if (one !== cases[state.number]) return;
    state.sheets = { images: sheets.slice(0, names.length), truth: sheets[names.length] };
    results.forEach((name, index) => { state.sheets[`result ${name}`] = sheets[names.length + 1 + index]; });
    views.replaceChildren(...names.map((name) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${name} of ${one.name}`);
      caption.textContent = name;
      figure.append(canvas, caption);
      return figure;
    }));
    chosen.selectedIndex = state.number;
    slide.max = one.slices.length - 1;
    slide.value = one.start;
    draw();
  };

  // The edges between pixels of the class and others, as in the panels above.
  const contour = (context, sheet, value, offset, [height, width], sx, sy) => {
    const inside = (row, column) => row >= 0 && column >= 0 && row < height && column < width
      && sheet[offset + row * width + column] === value;
    context.beginPath();
    for (let row = 0; row <= height; row++) {
      for (let column = 0; column <= width; column++) {
        const here = inside(row, column);
        if (here !== inside(row - 1, column)) {
          context.moveTo(column * sx, row * sy);
          context.lineTo((column + 1) * sx, row * sy);
        }
        if (here !== inside(row, column - 1)) {
          context.moveTo(column * sx, row * sy);
          context.lineTo(column * sx, (row + 1) * sy);
        }
      }
    }
    context.stroke();
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = () => {
    const one = cases[state.number], sheets = state.sheets;
    if (!sheets) return;
    const [height, width] = one.size, position = Number(slide.value), offset = position * height * width;
    const count = Number(root.dataset.classes);
    [...views.querySelectorAll("canvas")].forEach((canvas, index) => {
      const ratio = (height * one.pixel_mm[0]) / (width * one.pixel_mm[1]);
      const scale = Math.max(1, window.devicePixelRatio || 1);
      canvas.width = Math.round(canvas.clientWidth * scale);
      canvas.height = Math.round(canvas.width * ratio);
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(sheets.images[index], 0, position * height, width, height, 0, 0, canvas.width, canvas.height);
      const sx = canvas.width / width, sy = canvas.height / height;
      context.lineCap = "round";
      // The reference lies below, so that it shows only where a result departs from it.
      if (truth.checked) {
        context.strokeStyle = colour("--truth");
        context.lineWidth = 1.6 * scale;
        for (let value = 1; value <= count; value++) contour(context, sheets.truth, value, offset, one.size, sx, sy);
      }
      if (sheets[`result ${system.value}`]) {
        for (let value = 1; value <= count; value++) {
          context.strokeStyle = colour(`--k${(value - 1) % 6 + 1}`);
          context.lineWidth = 2 * scale;
          contour(context, sheets[`result ${system.value}`], value, offset, one.size, sx, sy);
        }
      }
      if (one.sides) {
        context.fillStyle = "#fff";
        context.font = `${13 * scale}px system-ui, sans-serif`;
        context.textBaseline = "top";
        context.fillText(one.sides[0], 5 * scale, 5 * scale);
        const last = one.sides[1];
        context.fillText(last, canvas.width - context.measureText(last).width - 5 * scale, 5 * scale);
      }
    });
    const scores = one.dice[system.value];
    const numbers = scores ? `; Dice of ${system.value}: ${scores}` : "";
    status.textContent = `${one.name}, slice ${one.slices[position] + 1} (${position + 1} of ${one.slices.length} shown)${numbers}`;
    Object.assign(root.dataset, { case: one.name, slice: String(one.slices[position]), ready: "yes" });
  };

  const step = (by) => {
    slide.value = Number(slide.value) + by;
    draw();
  };
  const go = (number) => show(number).catch((error) => { status.textContent = error.message; });

  part("previous-slice").addEventListener("click", () => step(-1));
  part("next-slice").addEventListener("click", () => step(1));
  part("previous-case").addEventListener("click", () => go(state.number - 1));
  part("next-case").addEventListener("click", () => go(state.number + 1));
  chosen.addEventListener("change", () => go(chosen.selectedIndex));
  [slide, system, truth].forEach((control) => control.addEventListener("input", draw));
  window.addEventListener("resize", draw);
  go(0);
})();
