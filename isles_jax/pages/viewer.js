// The viewer of every slice: one canvas for each channel, with contours, window, zoom and the values under the cursor.
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const { cases, channels, classes, levels, colours } = JSON.parse(document.getElementById("viewer-data").textContent);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const chosen = part("case"), system = part("system"), slide = part("slice");
  // A page offers only the controls that its cases need.
  const truth = part("truth"), others = part("others"), risk = part("risk"), coloured = part("coloured");
  const views = part("views"), status = part("status"), values = part("values");
  const HINT = "On the image: wheel or arrow keys change the slice, + and − zoom on the lesion, dragging moves it. "
    + "Point at a voxel to read its values.";
  // The zoomed image is centred on `centre`, a share of its sides; `pointer` is a share of the canvas's sides.
  const state = { number: 0, sheets: null, zoom: 1, centre: [0.5, 0.5], windows: [], pointer: null };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // --- pixels -------------------------------------------------------------------------------------------------------

  // An image of the page as one byte for each pixel; nothing for a channel that a case lacks.
  const bytes = (source) => source && new Promise((resolve, reject) => {
    const image = new Image();
    image.onerror = () => reject(new Error("a picture of the page cannot be read"));
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, image.width, image.height).data;
      resolve(Uint8Array.from({ length: pixels.length / 4 }, (_, index) => pixels[4 * index]));
    };
    image.src = source;
  });

  // A gray byte is a level times the step. Level 0 is outside the brain; the others lie evenly over the channel's range.
  const step = 256 / levels;
  const valueAt = (byte, [low, high]) => low + (Math.max(byte / step, 1) - 1) / (levels - 2) * (high - low);

  // Digits after the point that the distance between two levels, or the ticks of a scale, deserve.
  const digits = (distance) => clamp(Math.ceil(-Math.log10(distance)), 0, 6);

  const describe = (byte, [low, high], unit = "") => {
    if (byte === 0) return "outside the brain";
    const sign = byte === step ? "≤" : byte === (levels - 1) * step ? "≥" : "≈";
    return `${sign} ${valueAt(byte, [low, high]).toFixed(digits((high - low) / (levels - 2)))} ${unit}`.trim();
  };

  // The colour of a position from 0 to 1 on a scale.
  const onScale = (position, inColour) => {
    if (!inColour) return Array(3).fill(255 * position);
    const place = position * (colours.length - 1), first = Math.min(Math.floor(place), colours.length - 2);
    return colours[first].map((low, index) => low + (place - first) * (colours[first + 1][index] - low));
  };

  const isColoured = (index) => Boolean(channels[index].contour && coloured.checked);
  // The place of the slice among those of the case; the slider counts from 1.
  const shownSlice = () => Number(slide.value) - 1;
  const range = (index) => cases[state.number].ranges[index];
  const windowOf = (index) => state.windows[index] || channels[index].window || range(index);

  // A slice of a channel in the chosen window, as a canvas with one pixel for each voxel.
  const slicePicture = (index, offset) => {
    const [height, width] = cases[state.number].size, [low, high] = windowOf(index);
    const palette = Array.from({ length: 256 }, (_, byte) => (byte === 0 ? [0, 0, 0]
      : onScale(clamp((valueAt(byte, range(index)) - low) / (high - low), 0, 1), isColoured(index))));
    const picture = new ImageData(width, height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      picture.data.set(palette[state.sheets.images[index][offset + pixel]], 4 * pixel);
      picture.data[4 * pixel + 3] = 255;
    }
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  };

  // --- drawing ------------------------------------------------------------------------------------------------------

  const contours = (sheet, offset, style) => classes.map((_, index) => ({
    path: outline((pixel) => sheet[offset + pixel] === index + 1, cases[state.number].size),
    colour: colour(`--k${index % 6 + 1}`),
    style,
  }));

  const frame = () => views.querySelectorAll("canvas.slice");

  const drawLine = (context, line, matrix, density) => {
    const path = new Path2D(), scale = line.style === "thin" ? density / 2 : density;
    path.addPath(line.path, matrix);
    context.lineJoin = "round";
    context.setLineDash([]);
    // A dark halo shows a line on bright tissue; around thin lines it would hide what lies beside them.
    if (line.style !== "thin") {
      context.strokeStyle = "rgb(0 0 0 / 75%)";
      context.lineWidth = 4 * scale;
      context.stroke(path);
    }
    if (line.style === "dashed") context.setLineDash([5 * scale, 4 * scale]);
    context.strokeStyle = line.colour;
    context.lineWidth = 2 * scale;
    context.stroke(path);
  };

  const drawScale = (canvas, index, density) => {
    const [low, high] = windowOf(index), context = canvas.getContext("2d"), width = canvas.clientWidth;
    canvas.width = width * density;
    canvas.height = 28 * density;
    context.scale(density, density);
    const margin = 12, x = (value) => margin + (value - low) / (high - low) * (width - 2 * margin);
    for (let place = margin; place < width - margin; place++) {
      context.fillStyle = `rgb(${onScale((place - margin) / (width - 2 * margin), isColoured(index)).join(" ")})`;
      context.fillRect(place, 0, 1.5, 10);
    }
    const size = 10 ** Math.floor(Math.log10((high - low) / 4));
    const spacing = [1, 2, 5, 10].map((factor) => factor * size).find((distance) => distance >= (high - low) / 6);
    context.fillStyle = colour("--text");
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    for (let tick = Math.ceil(low / spacing - 1e-9) * spacing; tick <= high + 1e-9 * spacing; tick += spacing) {
      context.fillRect(x(tick) - 0.5, 10, 1, 4);
      context.fillText(tick.toFixed(digits(spacing)), x(tick), 26);
    }
  };

  const draw = () => {
    const one = cases[state.number], sheets = state.sheets;
    if (!sheets) return;
    const [height, width] = one.size, position = shownSlice(), offset = position * height * width;
    const result = sheets.results[system.value], density = Math.max(1, window.devicePixelRatio || 1);
    // The reference lies below, so that it shows only where the result differs from it.
    const lines = [...(truth && truth.checked ? contours(sheets.truth, offset, "dashed") : []),
      ...(result ? contours(result, offset, "solid") : [])];
    // Thin lines lie above, so that they also show where they cross the result.
    if (others && others.checked) {
      lines.push(...Object.entries(sheets.results).filter(([label]) => label !== system.value)
        .flatMap(([, sheet]) => contours(sheet, offset, "thin")));
    }
    frame().forEach((canvas) => {
      const index = Number(canvas.dataset.channel), context = canvas.getContext("2d"), { contour } = channels[index];
      canvas.width = Math.round(canvas.clientWidth * density);
      canvas.height = Math.round(canvas.width * (height * one.pixel_mm[0]) / (width * one.pixel_mm[1]));
      const matrix = new DOMMatrix([state.zoom * canvas.width / width, 0, 0, state.zoom * canvas.height / height,
        canvas.width * (0.5 - state.zoom * state.centre[0]), canvas.height * (0.5 - state.zoom * state.centre[1])]);
      context.imageSmoothingQuality = "high";
      context.setTransform(matrix);
      context.drawImage(slicePicture(index, offset), 0, 0);
      context.resetTransform();
      if (contour && risk.checked) {
        const raised = (pixel) => sheets.images[index][offset + pixel] > 0
          && valueAt(sheets.images[index][offset + pixel], range(index)) > contour;
        drawLine(context, { path: outline(raised, one.size), colour: "#fff" }, matrix, 0.8 * density);
      }
      lines.forEach((line) => drawLine(context, line, matrix, density));
      drawSides(context, one.sides, canvas, density);
      drawLength(context, canvas, state.zoom * canvas.width / (width * one.pixel_mm[1]), density);
      drawScale(canvas.parentElement.querySelector("canvas.scale"), index, density);
    });
    const note = one.notes[system.value] ? `; ${one.notes[system.value]}` : "";
    const zoom = state.zoom > 1 ? `, zoom ${state.zoom.toFixed(1)}` : "";
    const slice = `slice ${one.slices[position] + 1}, ${one.places[position]} (${position + 1} of ${one.slices.length} shown)`;
    slide.setAttribute("aria-valuetext", slice);
    status.textContent = `${one.name}, ${slice}${zoom}${note}`;
    values.textContent = describeVoxel();
    views.classList.toggle("zoomed", state.zoom > 1);
    Object.assign(root.dataset, { case: one.name, slice: one.slices[position], zoom: state.zoom, ready: "yes" });
  };

  // The voxel under the cursor: the approximate value of each channel, and its class.
  const describeVoxel = () => {
    if (!state.pointer) return HINT;
    const [height, width] = cases[state.number].size, { images, results, truth: reference } = state.sheets;
    const [column, row] = [width, height].map((size, axis) => clamp(
      Math.floor(size * (state.centre[axis] + (state.pointer[axis] - 0.5) / state.zoom)), 0, size - 1));
    const pixel = (shownSlice() * height + row) * width + column;
    const label = (sheet) => classes[sheet[pixel] - 1] || "no lesion";
    const texts = channels.map(({ name, unit }, index) =>
      `${name} ${images[index] ? describe(images[index][pixel], range(index), unit) : "is absent"}`);
    if (reference) texts.push(`reference: ${label(reference)}`);
    if (results[system.value]) texts.push(`${system.value}: ${label(results[system.value])}`);
    return texts.join(" · ");
  };

  // White text with a dark halo, at a place of a canvas in its own pixels.
  const drawText = (context, text, x, y, align, baseline, density) => {
    context.font = `${14 * density}px system-ui, sans-serif`;
    context.textAlign = align;
    context.textBaseline = baseline;
    context.lineWidth = 3 * density;
    context.setLineDash([]);
    context.strokeStyle = "#000";
    context.fillStyle = "#fff";
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };

  const drawSides = (context, sides, { width, height }, density) => {
    if (!sides) return;
    const margin = 5 * density, [left, right, top, bottom] = sides;
    drawText(context, left, margin, margin, "left", "top", density);
    drawText(context, right, width - margin, margin, "right", "top", density);
    drawText(context, top, width / 2, margin, "center", "top", density);
    drawText(context, bottom, width / 2, height - margin, "center", "bottom", density);
  };

  // A bar of a round length that fills at most a quarter of the width.
  const drawLength = (context, { width, height }, pixelsPerMm, density) => {
    const lengths = [100, 50, 20, 10, 5, 2, 1], margin = 6 * density;
    const length = lengths.find((mm) => mm * pixelsPerMm <= width / 4) || 1;
    context.fillStyle = "#000";
    context.fillRect(margin - density, height - margin - 4 * density, length * pixelsPerMm + 2 * density, 5 * density);
    context.fillStyle = "#fff";
    context.fillRect(margin, height - margin - 3 * density, length * pixelsPerMm, 3 * density);
    drawText(context, `${length} mm`, margin, height - margin - 5 * density, "left", "bottom", density);
    root.dataset.bar = `${length} mm: ${length * pixelsPerMm / density}`;
  };

  // --- a case -------------------------------------------------------------------------------------------------------

  const endInput = (index, end, label) => {
    const input = document.createElement("input");
    input.type = "number";
    input.step = "any";
    input.value = String(Number(windowOf(index)[end].toPrecision(3)));
    input.setAttribute("aria-label", `${channels[index].name}: value shown ${label}`);
    input.addEventListener("input", () => {
      const ends = [...windowOf(index)];
      ends[end] = Number(input.value);
      if (input.value === "" || ends[0] >= ends[1]) return;
      state.windows[index] = ends;
      draw();
    });
    return input;
  };

  const makeView = ({ name, unit }, index) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    if (!state.sheets.images[index]) {
      caption.append(`${name} is absent`);
      figure.append(caption);
      return figure;
    }
    const canvas = document.createElement("canvas"), scale = document.createElement("canvas");
    const ends = document.createElement("span"), inputs = document.createElement("span");
    canvas.className = "slice";
    canvas.dataset.channel = index;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} of ${cases[state.number].name}`);
    scale.className = "scale";
    scale.setAttribute("role", "img");
    scale.setAttribute("aria-label", `scale of ${name}`);
    ends.className = "ends";
    inputs.append(endInput(index, 0, "darkest"), " to ", endInput(index, 1, "brightest"));
    ends.append("window ", inputs);
    caption.append(`${name}, ${unit || "as stored"}`, ends);
    figure.append(canvas, scale, caption);
    return figure;
  };

  const show = async (number) => {
    state.number = (number + cases.length) % cases.length;
    state.sheets = null;
    const one = cases[state.number], labels = Object.keys(one.results);
    const images = channels.map(({ name }) => one.images[name]);
    const reference = one.truth ? [one.truth] : [], predicted = labels.map((label) => one.results[label]);
    const sheets = await Promise.all([...images, ...reference, ...predicted].map(bytes));
    // Another case may have been chosen meanwhile.
    if (one !== cases[state.number]) return;
    const results = labels.map((label, index) => [label, sheets[images.length + reference.length + index]]);
    state.sheets = { images: sheets, truth: one.truth && sheets[images.length], results: Object.fromEntries(results) };
    // A window without a unit belongs to one scan; seconds are the same in all of them.
    state.windows = state.windows.map((ends, index) => (channels[index].unit ? ends : undefined));
    state.zoom = 1;
    state.centre = [0.5, 0.5];
    views.replaceChildren(...channels.map(makeView));
    if (chosen) chosen.selectedIndex = state.number;
    slide.max = one.slices.length;
    slide.value = one.start + 1;
    draw();
  };
  const go = (number) => show(number).catch((error) => { status.textContent = error.message; });

  // --- controls -----------------------------------------------------------------------------------------------------

  // True if there was another slice in this direction.
  const move = (by) => {
    const before = slide.value;
    slide.value = Number(before) + by;
    if (slide.value === before) return false;
    draw();
    return true;
  };

  const pan = (right, down) => {
    const half = 0.5 / state.zoom;
    state.centre = [clamp(state.centre[0] + right / state.zoom, half, 1 - half),
      clamp(state.centre[1] + down / state.zoom, half, 1 - half)];
    draw();
  };

  // Zooms and keeps the point at x and y, as shares of the canvas, in its place.
  const zoomBy = (factor, x = 0.5, y = 0.5) => {
    const before = state.zoom;
    state.zoom = clamp(before * factor, 1, 16);
    const growth = state.zoom / before - 1;
    pan((x - 0.5) * growth, (y - 0.5) * growth);
  };

  // The voxel of the lesion that lies nearest to its middle, as shares of the image's sides; the image's middle without a
  // lesion in this slice.
  const lesion = () => {
    const [height, width] = cases[state.number].size, { results, truth: reference } = state.sheets;
    const sheets = [results[system.value], reference, ...Object.values(results)].filter(Boolean);
    const offset = shownSlice() * height * width, pixels = [];
    const sheet = sheets.find((one) => one.subarray(offset, offset + height * width).some(Boolean));
    for (let pixel = 0; sheet && pixel < height * width; pixel++) {
      if (sheet[offset + pixel]) pixels.push([pixel % width + 0.5, Math.floor(pixel / width) + 0.5]);
    }
    if (!pixels.length) return [0.5, 0.5];
    const middle = [0, 1].map((axis) => pixels.reduce((sum, one) => sum + one[axis], 0) / pixels.length);
    const distance = ([x, y]) => (x - middle[0]) ** 2 + (y - middle[1]) ** 2;
    const [x, y] = pixels.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    return [x / width, y / height];
  };

  // A whole image is zoomed on its lesion, a zoomed one on its middle.
  const zoomIn = () => {
    if (state.zoom === 1) state.centre = lesion();
    zoomBy(1.5);
  };

  // Where in the canvas, as shares of its sides, an event happened.
  const place = (event, canvas) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  const pointAt = (event) => {
    if (!state.sheets || !event.target.matches("canvas.slice")) return;
    state.pointer = place(event, event.target);
    values.textContent = describeVoxel();
  };

  let scrolled = 0;
  views.addEventListener("wheel", (event) => {
    if (!event.target.matches("canvas.slice")) return;
    if (event.ctrlKey) {
      event.preventDefault();
      zoomBy(2 ** (-event.deltaY / 200), ...place(event, event.target));
      return;
    }
    // A trackpad sends many small turns. At the first and last slice the page scrolls.
    scrolled += event.deltaY;
    const end = event.deltaY > 0 ? slide.max : slide.min;
    if (slide.value !== end) event.preventDefault();
    if (Math.abs(scrolled) >= 40) {
      move(Math.sign(scrolled));
      scrolled = 0;
    }
  }, { passive: false });

  const KEYS = {
    ArrowUp: () => move(-1), ArrowLeft: () => move(-1), ArrowDown: () => move(1), ArrowRight: () => move(1),
    "+": zoomIn, "=": zoomIn, "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(1 / 16),
    "shift ArrowUp": () => pan(0, -0.1), "shift ArrowDown": () => pan(0, 0.1),
    "shift ArrowLeft": () => pan(-0.1, 0), "shift ArrowRight": () => pan(0.1, 0),
  };
  views.addEventListener("keydown", (event) => {
    if (event.target !== views || event.ctrlKey || event.altKey || event.metaKey) return;
    const action = KEYS[event.shiftKey && event.key.startsWith("Arrow") ? `shift ${event.key}` : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  views.addEventListener("pointermove", (event) => {
    if (!event.target.matches("canvas.slice")) return;
    if (event.buttons && state.zoom > 1) {
      pan(-event.movementX / event.target.clientWidth, -event.movementY / event.target.clientHeight);
    }
    pointAt(event);
  });
  views.addEventListener("pointerdown", pointAt);
  views.addEventListener("pointerleave", () => {
    state.pointer = null;
    values.textContent = HINT;
  });

  const CLICKS = {
    "previous-slice": () => move(-1), "next-slice": () => move(1),
    "previous-case": () => go(state.number - 1), "next-case": () => go(state.number + 1),
    "zoom-in": zoomIn, "zoom-out": () => zoomBy(1 / 1.5), whole: () => zoomBy(1 / 16),
  };
  for (const [name, action] of Object.entries(CLICKS)) part(name)?.addEventListener("click", action);
  chosen?.addEventListener("change", () => go(chosen.selectedIndex));
  [slide, system, truth, others, risk, coloured].forEach((control) => control && control.addEventListener("input", draw));
  window.addEventListener("resize", draw);
  // A case's name in the table of every case opens the case with the system of its row.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.show");
    if (!button) return;
    const label = button.closest("tr").cells[1].textContent;
    if ([...system.options].some(({ value }) => value === label)) system.value = label;
    go(cases.findIndex(({ name }) => name === button.textContent));
    root.scrollIntoView();
    views.focus({ preventScroll: true });
  });
  go(0);
})();
