// Before the first paint: the theme that was chosen here, else the system's.
try {
  const chosen = localStorage.getItem("adaptserve-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch { /* storage is closed to this page: the system decides */ }
