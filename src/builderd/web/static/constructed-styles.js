// xterm.js writes its theme into <style> elements, which the policy `style-src 'self'` blocks. In their place it gets a hidden
// element whose text goes to a constructed style sheet: the policy allows that, since only a script can make one.
"use strict";
(() => {
  const make = Document.prototype.createElement;
  Document.prototype.createElement = function createElement(name, options) {
    if (String(name).toLowerCase() !== "style") return make.call(this, name, options);
    const element = make.call(this, "span"), sheet = new CSSStyleSheet(), remove = element.remove.bind(element);
    element.hidden = true;
    document.adoptedStyleSheets.push(sheet);
    Object.defineProperty(element, "sheet", { get: () => sheet });
    Object.defineProperty(element, "textContent", { get: () => "", set: (text) => sheet.replaceSync(text) });
    element.remove = () => { document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet); remove(); };
    return element;
  };
})();
