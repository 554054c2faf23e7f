// EXPECT_ERROR(Type, expression, parts...): the expression throws Type and its message contains
// each part.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/core/error.h"

namespace r1::test {

/// The message of the E that `f` throws; a failure when it throws none.
template <class E, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

}  // namespace r1::test

#define EXPECT_ERROR(Type, expr, ...)                                                   \
  do {                                                                                  \
    const std::string r1_message = ::r1::test::message_of<Type>([&] { (void)(expr); }); \
    for (const std::string& r1_part : std::vector<std::string>{__VA_ARGS__})            \
      EXPECT_NE(r1_message.find(r1_part), std::string::npos)                            \
          << r1_part << "\n  in: " << r1_message;                                       \
  } while (false)
#define EXPECT_DATA_ERROR(expr, ...) EXPECT_ERROR(::r1::DataError, expr, __VA_ARGS__)
