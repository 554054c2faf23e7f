#include "launch/verify_layouts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/launch_job.h"
#include "launch/temporary_directory.h"
#include "parallel/mesh/mesh.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using nlohmann::json;

/// A number, or NaN for null (JSON has no NaN).
double number_of(const json& value) {
  return value.is_number() ? value.get<double>() : std::nan("");
}
bool worse(double a, double b) { return std::isnan(a) ? !std::isnan(b) : a > b; }
json as_json(double v) { return std::isfinite(v) ? json(v) : json(nullptr); }

}  // namespace

json merge_verify_results(const std::vector<std::pair<std::string, json>>& results) {
  json merged;
  json each = json::object(), grads = json::object(), worst_grad;
  double loss_error = 0, logits_error = 0, grad_error = 0;
  bool pass = true, first = true;
  for (const auto& [layout, r] : results) {
    try {
      const double l = number_of(r.at("loss_rel_err")), z = number_of(r.at("logits_max_abs_err"));
      if (first || worse(l, loss_error)) {
        loss_error = l;
        merged["loss"] = r.at("loss");
        merged["loss_ref"] = r.at("loss_ref");
      }
      if (first || worse(z, logits_error)) logits_error = z;
      for (const auto& [name, value] : r.at("grads").items()) {
        const double g = number_of(value);
        if (!grads.contains(name) || worse(g, number_of(grads[name]))) grads[name] = as_json(g);
        if (worst_grad.is_null() || worse(g, grad_error)) {
          grad_error = g;
          worst_grad = {{"name", name}, {"rel_l2", as_json(g)}};
        }
      }
      pass = pass && r.at("pass").get<bool>();
    } catch (const json::exception& e) {
      throw DataError("verify result of layout {}: {}", layout, e.what());
    }
    each[layout] = r;
    first = false;
  }
  merged["loss_rel_err"] = as_json(loss_error);
  merged["logits_max_abs_err"] = as_json(logits_error);
  merged["worst_grad"] = worst_grad;
  merged["grads"] = grads;
  merged["pass"] = pass && !first;
  merged["layouts"] = each;
  return merged;
}

std::vector<std::string> without_options(const std::vector<std::string>& arguments,
                                         const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const bool named = std::find(names.begin(), names.end(), word) != names.end();
    const bool with_value = std::any_of(names.begin(), names.end(), [&](const std::string& n) {
      return word.starts_with(n + "=");
    });
    if (named) {
      ++i;  // and its value
    } else if (!with_value) {
      out.push_back(word);
    }
  }
  return out;
}

namespace {

using LayoutResults = std::vector<std::pair<std::string, json>>;

/// What the job of one layout is: the request with its mesh, its result in `out`.
Request request_of(const Request& request, const parallel::MeshShape& m, const std::string& out) {
  Request one = request;
  one.config.pp = m.pp;
  one.config.dp = m.dp;
  one.config.tp = m.tp;
  one.for_ranks =
      without_options(request.for_ranks, {"--layouts", "--json", "--pp", "--dp", "--tp"});
  one.for_ranks.insert(one.for_ranks.end(),
                       {"--pp", std::to_string(m.pp), "--dp", std::to_string(m.dp), "--tp",
                        std::to_string(m.tp), "--json", out});
  return one;
}

/// The result that a job left in `file`, or null where it left none.
json result_in(const std::string& file, const std::string& layout, int code) {
  std::ifstream in(file);
  json result = in ? json::parse(in, nullptr, false) : json();
  if (result.is_object()) return result;
  if (code == 0) throw InternalError("verify of layout {} ended well but wrote no result", layout);
  std::fprintf(stderr, "r1run: layout %s ended with code %d and no result\n", layout.c_str(), code);
  return nullptr;
}

/// Runs the layouts one after the other; `verdict` gets the first code that is not 0.
LayoutResults run_layouts(const Request& request, const std::vector<parallel::MeshShape>& shapes,
                          const Destination& destination, int* verdict) {
  const TemporaryDirectory scratch("verify");
  // Without a reference the first layout becomes it: the rank program writes its results where
  // this variable says.
  const bool compare_with_first = request.config.reference.empty() && shapes.size() > 1;
  const std::string first_results = scratch.file("first-layout.safetensors");
  LayoutResults results;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string& layout = request.config.layouts[i];
    const std::string out = scratch.file(fmt::format("layout-{}.json", i));
    Request one = request_of(request, shapes[i], out);
    if (compare_with_first && i == 0) setenv("R1RUN_VERIFY_WRITE", first_results.c_str(), 1);
    if (compare_with_first && i > 0) {
      unsetenv("R1RUN_VERIFY_WRITE");
      one.for_ranks.insert(one.for_ranks.end(), {"--reference", first_results});
    }
    const int code = launch(one, destination, Environment::of_process(),
                            i == 0 ? Announce::kYes : Announce::kNo);
    if (request.config.dry_run) continue;
    if (code != 0 && *verdict == 0) *verdict = code;
    if (json result = result_in(out, layout, code); !result.is_null()) {
      result["exit_code"] = code;
      results.emplace_back(layout, std::move(result));
    }
  }
  return results;
}

void print_table(const LayoutResults& results, size_t layouts, bool pass) {
  std::printf("%-12s %14s %14s %14s  %-6s %s\n", "pp x dp x tp", "loss rel", "logits abs",
              "worst grad", "pass", "in");
  for (const auto& [layout, r] : results) {
    std::printf(
        "%-12s %14.3g %14.3g %14.3g  %-6s %s\n", layout.c_str(), number_of(r["loss_rel_err"]),
        number_of(r["logits_max_abs_err"]), number_of(r["worst_grad"]["rel_l2"]),
        r["pass"].get<bool>() ? "yes" : "NO",
        r["worst_grad"].contains("name") ? r["worst_grad"]["name"].get<std::string>().c_str() : "");
    if (r["pass"].get<bool>() && r["exit_code"] != 0)
      std::printf("%-12s gave this result, but its job ended with code %d: see what it said above\n", "", r["exit_code"].get<int>());
  }
  std::printf("%s: %zu of %zu layouts gave a result\n", pass ? "pass" : "FAIL", results.size(),
              layouts);
}

/// --json: a file, or - for the output.
void write_merged(const json& merged, const std::string& file_name) {
  if (file_name.empty()) return;
  if (file_name == "-") {
    std::printf("%s\n", merged.dump(2).c_str());
    return;
  }
  std::ofstream file(file_name);
  file << merged.dump(2) << '\n';
  if (!file.flush())
    throw StorageError("--json {}: cannot write: {}", file_name, std::strerror(errno));
}

}  // namespace

int verify_layouts(const Request& request, const Destination& destination) {
  std::vector<parallel::MeshShape> shapes;
  for (const auto& text : request.config.layouts) shapes.push_back(parallel::parse_layout(text));
  int verdict = 0;
  const LayoutResults results = run_layouts(request, shapes, destination, &verdict);
  if (request.config.dry_run) return 0;

  json merged = results.empty() ? json{{"pass", false}} : merge_verify_results(results);
  if (verdict != 0 || results.size() != shapes.size()) merged["pass"] = false;
  const bool pass = merged["pass"].get<bool>();
  print_table(results, shapes.size(), pass);
  write_merged(merged, request.config.json);
  if (pass) return 0;
  return verdict != 0 ? verdict : 1;
}

}  // namespace r1::launch
