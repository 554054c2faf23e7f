#include "runtime/train/same_job.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/core/host.h"
#include "runtime/core/rng.h"

namespace r1::train {
namespace {

namespace fs = std::filesystem;

/// Options that hosts may well have of their own, and those whose effect ends at the front door.
constexpr std::string_view kOwn[] = {"threads", "config", "hostfile", "host", "dry-run", "max-restarts"};
constexpr std::string_view kModelFiles[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                            "model.safetensors.index.json", "model.safetensors"};
constexpr uintmax_t kReadAtMost = 1 << 20;

std::string file_text(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) return "missing";
  if (size > kReadAtMost) return fmt::format("{} bytes", size);
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  return fmt::format("{} bytes, {:016x}", size, hash_name(text));
}

std::string to_text(const std::vector<JobFact>& facts) {
  auto j = nlohmann::json::array();
  for (const JobFact& f : facts) j.push_back({f.name, f.value, f.origin});
  return j.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::vector<JobFact> from_text(const std::string& text) {
  std::vector<JobFact> facts;
  for (const auto& j : nlohmann::json::parse(text)) facts.push_back({j[0], j[1], j[2]});
  return facts;
}

int64_t digest(const std::vector<JobFact>& facts) {
  std::string text;
  for (const JobFact& f : facts) text += fmt::format("{}\x1f{}\x1e", f.name, f.value);
  return static_cast<int64_t>(hash_name(text));
}

const JobFact* find(const std::vector<JobFact>& facts, const std::string& name) {
  const auto it = std::find_if(facts.begin(), facts.end(), [&](const JobFact& f) { return f.name == name; });
  return it == facts.end() ? nullptr : &*it;
}

}  // namespace

std::string build_id() {
  std::string id;
  // The first object is the program itself.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_NOTE) continue;
          const char* at = reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr);
          const char* end = at + segment.p_memsz;
          while (at + sizeof(ElfW(Nhdr)) <= end) {
            ElfW(Nhdr) note;
            std::memcpy(&note, at, sizeof note);
            const char* name = at + sizeof note;
            const char* text = name + (note.n_namesz + 3) / 4 * 4;
            if (text + note.n_descsz > end) break;
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0)
              for (size_t b = 0; b < note.n_descsz; ++b)
                *static_cast<std::string*>(out) += fmt::format("{:02x}", static_cast<unsigned char>(text[b]));
            at = text + (note.n_descsz + 3) / 4 * 4;
          }
        }
        return 1;
      },
      &id);
  return id;
}

std::vector<JobFact> job_facts(const JobConfig& config) {
  std::vector<JobFact> facts{{"command", config.command, ""}, {"program", "r1run-rank " R1RUN_VERSION " build " + build_id(), ""}};
  for (const std::string& name : option_names(config.command))
    if (std::ranges::find(kOwn, name) == std::end(kOwn)) facts.push_back({"--" + name, config.value(name), config.origin(name).str()});
  std::error_code error;
  if (fs::is_directory(config.model, error))
    for (const std::string_view file : kModelFiles) facts.push_back({fmt::format("model/{}", file), file_text(fs::path(config.model) / file), ""});
  else if (!config.model.empty())
    facts.push_back({"model", fs::exists(config.model, error) ? "there" : "missing", ""});
  return facts;
}

std::string fact_differences(const std::vector<JobFact>& first, const std::vector<JobFact>& other, int first_rank, int other_rank) {
  std::string out;
  const auto told = [](const JobFact* f) {
    if (f == nullptr) return std::string("nothing");
    return fmt::format("{}{}", f->value.empty() ? "(not given)" : f->value, f->origin.empty() ? "" : " (" + f->origin + ")");
  };
  const auto line = [&](const std::string& name) {
    out += fmt::format("\n  {}: {} on rank {}, {} on rank {}", name, told(find(first, name)), first_rank, told(find(other, name)), other_rank);
  };
  for (const JobFact& f : first)
    if (const JobFact* o = find(other, f.name); o == nullptr || !(*o == f)) line(f.name);
  for (const JobFact& f : other)
    if (find(first, f.name) == nullptr) line(f.name);
  return out;
}

void check_same_job(comm::Communicator& world, const std::vector<JobFact>& facts) {
  const std::vector<int64_t> all = gather(world, digest(facts));
  const auto odd = std::find_if(all.begin(), all.end(), [&](int64_t d) { return d != all[0]; });
  if (odd == all.end()) return;
  const int rank = static_cast<int>(odd - all.begin());
  const std::string first = broadcast_text(world, to_text(facts), 0), other = broadcast_text(world, to_text(facts), rank);
  const std::string first_host = broadcast_text(world, host_name(), 0), other_host = broadcast_text(world, host_name(), rank);
  const auto unlike = std::count_if(all.begin(), all.end(), [&](int64_t d) { return d != all[0]; });
  throw UsageError("the ranks were not given the same job: rank {} on {} differs from rank 0 on {}{}:{}\n(one command line, the same "
                   "configuration file, program and model on every host; `r1run doctor --hostfile F` compares hosts)",
                   rank, other_host, first_host, unlike > 1 ? fmt::format(", and so do {} more", unlike - 1) : "",
                   fact_differences(from_text(first), from_text(other), 0, rank));
}

}  // namespace r1::train
