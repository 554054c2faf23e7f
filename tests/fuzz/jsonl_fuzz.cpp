// Data files: cutting bytes into rows, telling the format, reading and tokenising each row.
// Whatever the bytes, the outcome is rows, bad rows (RowError) or a refused file (DataError).
//
// The first byte chooses the file's name and so its layout, the second the format; the rest is the
// file.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/core/error.h"
#include "runtime/data/formats.h"
#include "runtime/data/input.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace r1;

const text::Tokenizer& tokenizer() {
  static const text::Tokenizer instance =
      text::Tokenizer::from_json(text::byte_level_tokenizer_json(), "byte-level");
  return instance;
}

void read_file(const std::string& name, uint8_t choice, std::string content) {
  data::EncodeSettings settings;
  settings.tokenizer = &tokenizer();
  settings.chat_template =
      (choice & 0x40) != 0 ? text::TemplateKind::kR1Tools : text::TemplateKind::kR1Distill;
  settings.think_history =
      (choice & 0x80) != 0 ? text::ThinkHistory::kAll : text::ThinkHistory::kLast;
  settings.end_id = 257;
  data::RecordReader reader(data::InputFile::from_memory(std::move(content), name),
                            data::RecordReader::Text::kByName);
  data::RecordBatch batch;
  while (reader.next(batch, 64)) {
    for (const auto& record : batch.records) {
      if (record.too_large) continue;
      try {
        if (reader.layout() == data::Layout::kTextLines) {
          (void)data::encode_text(batch.text(record), settings);
          continue;
        }
        std::string why;
        const auto format = (choice & 0x0f) < 8 ? static_cast<data::Format>(choice & 0x0f)
                                                : data::detect_format(batch.text(record), &why);
        if (!format) continue;
        const auto sample =
            data::encode_row(data::parse_row(*format, batch.text(record)), settings);
        if (sample.ids.size() != sample.trained.size()) __builtin_trap();
        if (!sample.labels.empty() && sample.labels.size() != sample.ids.size()) __builtin_trap();
      } catch (const data::RowError&) {
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  constexpr std::array<const char*, 3> kNames = {"a.jsonl", "a.json", "a.txt"};
  try {
    read_file(kNames[bytes[0] % kNames.size()], bytes[1],
              std::string(reinterpret_cast<const char*>(bytes) + 2, size - 2));
  } catch (const r1::DataError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  const std::string head("\x00\x0f", 2);
  return {head + R"({"question": "1+1?", "answer": "It is 2\n#### 2"})" "\n",
          head + R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>a</think>b"}]})" "\n",
          head + R"({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})" "\n",
          head + R"({"instruction": "do", "input": "", "output": "done"})" "\n{bad\n",
          std::string("\x01\x0f", 2) + R"([{"prompt": "a", "completion": "b"}, {"text": "c"}])"};
}
