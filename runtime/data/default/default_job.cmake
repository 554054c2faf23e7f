# Adds the default job to r1_data: its code, and the bundled data as bytes in the program.
set(default_job_dir ${CMAKE_CURRENT_LIST_DIR})
set(default_job_out ${CMAKE_CURRENT_BINARY_DIR}/gsm8k_slice.cpp)
add_custom_command(OUTPUT ${default_job_out}
  COMMAND ${CMAKE_COMMAND} -DIN=${default_job_dir}/gsm8k_slice.jsonl -DOUT=${default_job_out} -DNAME=r1_gsm8k_slice
    -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
  DEPENDS ${default_job_dir}/gsm8k_slice.jsonl ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
target_sources(r1_data PRIVATE ${default_job_dir}/default_job.cpp ${default_job_out})
