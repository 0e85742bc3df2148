// Tiles in JupyterLab's launcher: one for each notebook in nbs/experiments, which opens a copy of it.
//
// This is the whole extension, as JupyterLab loads it. There is no build step: the file is a container of webpack's
// module federation, written by hand. JupyterLab calls `init` with what it shares, then `get` for the plugin.
(() => {
  "use strict";

  const TEMPLATES = "nbs/experiments";
  const COMMAND = "sagelab:new-from-template";

  // Drawn in the grey that JupyterLab gives its own icons, in light and dark; the accent keeps its colour.
  const DRAWINGS = {
    backtest: `<path class="jp-icon3" fill="#616161" d="M3 3h2v16h16v2H3z"/>
      <path fill="none" stroke="#2a78b8" stroke-width="2" stroke-linejoin="round" stroke-linecap="round" d="M7 15l4-5 3 3 6-8"/>`,
    experiment: `<path class="jp-icon3" fill="#616161" d="M8 2h8v2h-1v5.2l5.3 9.3A2.4 2.4 0 0 1 18.2 22H5.8a2.4 2.4 0 0 1-2.1-3.5L9 9.2V4H8zm3 2v5.8L5.4 19.5a.4.4 0 0 0 .4.5h12.4a.4.4 0 0 0 .4-.5L13 9.8V4z"/>
      <path fill="#2a78b8" d="M8.2 15h7.6l2 3.6a.3.3 0 0 1-.3.4h-11a.3.3 0 0 1-.3-.4z"/>`,
    other: `<path class="jp-icon3" fill="#616161" d="M5 2h9l5 5v15H5zm2 2v16h10V8h-4V4z"/>
      <path fill="none" stroke="#2a78b8" stroke-width="1.6" stroke-linecap="round" d="M9 12h6M9 16h6"/>`,
  };

  let shared; // name -> version -> {get}, from JupyterLab

  async function load(name) {
    const versions = Object.values(shared[name]);
    const own = versions.find((version) => version.from === "@jupyterlab/application-top");
    return (await (own || versions[0]).get())();
  }

  const stemOf = (path) => path.split("/").pop().replace(/\.ipynb$/, "");
  const titleOf = (path) => (stemOf(path)[0].toUpperCase() + stemOf(path).slice(1)).replace(/[_-]+/g, " ");

  // The first of backtest-1.ipynb, backtest-2.ipynb, ... that a folder does not have.
  async function freePath(contents, folder, stem) {
    const taken = new Set((await contents.get(folder)).content.map((file) => file.name));
    let number = 1;
    while (taken.has(`${stem}-${number}.ipynb`)) number += 1;
    return `${folder ? folder + "/" : ""}${stem}-${number}.ipynb`;
  }

  // A template without its old results; on SageLab's own kernel where it is installed.
  function fresh(notebook, kernels) {
    for (const cell of notebook.cells) if (cell.cell_type === "code") Object.assign(cell, { outputs: [], execution_count: null });
    const own = kernels && kernels.sagelab;
    if (own) notebook.metadata.kernelspec = { name: own.name, display_name: own.display_name, language: own.language };
    return notebook;
  }

  async function openCopy(app, template, folder) {
    const { contents, kernelspecs } = app.serviceManager;
    const content = fresh((await contents.get(template)).content, kernelspecs.specs?.kernelspecs);
    const path = await freePath(contents, folder, stemOf(template));
    await contents.save(path, { type: "notebook", format: "json", content });
    return app.commands.execute("docmanager:open", { path });
  }

  async function plugin() {
    const { ILauncher } = await load("@jupyterlab/launcher");
    const { LabIcon } = await load("@jupyterlab/ui-components");
    const icons = Object.fromEntries(Object.entries(DRAWINGS).map(([name, drawing]) =>
      [name, new LabIcon({ name: `sagelab:${name}`, svgstr: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="24">${drawing}</svg>` })]));

    return {
      id: "sagelab:launcher",
      description: "Experiment templates in the launcher",
      autoStart: true,
      optional: [ILauncher],
      activate: async (app, launcher) => {
        if (!launcher) return;
        app.commands.addCommand(COMMAND, {
          label: (args) => titleOf(args.template || "template"),
          caption: (args) => `Open a copy of ${args.template}`,
          icon: (args) => icons[stemOf(args.template || "")] || icons.other,
          execute: async (args) => {
            try {
              return await openCopy(app, args.template, args.cwd || "");
            } catch (error) {
              const { showErrorMessage } = await load("@jupyterlab/apputils");
              return showErrorMessage("The template could not be copied", error);
            }
          },
        });
        // Outside of a lab there are no templates, and so no tiles.
        const found = await app.serviceManager.contents.get(TEMPLATES).catch(() => ({ content: [] }));
        const notebooks = found.content.filter((file) => file.type === "notebook").map((file) => file.path).sort();
        notebooks.forEach((template, rank) => launcher.add({ command: COMMAND, args: { template }, category: "SageLab", categoryRank: 10, rank }));
      },
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.sagelab = {
    init: (scope) => { shared = scope; },
    get: async () => {
      const found = await plugin();
      return () => ({ __esModule: true, default: found });
    },
  };
})();
