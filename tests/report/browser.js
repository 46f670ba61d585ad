// Runs in a copy of a report: measures what a reader would see and leaves it in the page as JSON.
window.addEventListener("load", () => {
  const channels = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const paper = channels(getComputedStyle(document.body).backgroundColor);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/rgba\(.*, 0\)|transparent/.test(color)) return channels(color);
    }
    return paper;
  };
  const texts = [...document.querySelectorAll("h1, h2, p, td, th, summary, svg text")].filter((e) => e.textContent.trim());
  const ink = (e) => channels(e.tagName === "text" ? getComputedStyle(e).fill : getComputedStyle(e).color);
  const overlap = (a, b) =>
    Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
    Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
  const svgs = [...document.querySelectorAll("svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    const labels = [...svg.querySelectorAll("text")].map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }));
    const covered = [];
    labels.forEach((a, i) => labels.slice(i + 1).forEach((b) => {
      if (overlap(a.box, b.box) > 0.2 * Math.min(a.box.width * a.box.height, b.box.width * b.box.height))
        covered.push(`${a.text} | ${b.text}`);
    }));
    const outside = labels.filter((l) => l.box.left < box.left - 1 || l.box.right > box.right + 1 || l.box.top < box.top - 1 || l.box.bottom > box.bottom + 1);
    const shapes = [...svg.querySelectorAll("path, use")].filter(
      (e) => !e.closest("defs") && /var\(--c\d\)/.test(e.getAttribute("style") || ""));
    return {
      title: svg.getAttribute("aria-label"),
      width: box.width,
      height: box.height,
      drawn: shapes.filter((e) => { const b = e.getBoundingClientRect(); return b.width + b.height > 0.5; }).length,
      faint: shapes.filter((e) => {
        const style = getComputedStyle(e);
        return contrast(channels(style.fill === "none" ? style.stroke : style.fill), paper) < 3;
      }).length,
      covered,
      outside: outside.map((l) => l.text),
      small: labels.filter((l) => Math.max(l.box.width, l.box.height) < 9).map((l) => l.text),
    };
  });
  const found = {
    dark: luminance(paper) < 0.2,
    unreadable: texts.filter((e) => contrast(ink(e), behind(e)) < 4.5).map((e) => e.textContent.slice(0, 40)),
    texts: texts.length,
    svgs,
    wide: document.documentElement.scrollWidth > window.innerWidth,
  };
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
