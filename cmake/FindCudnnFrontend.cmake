# Finds the cudnn-frontend headers (header-only; the PyPI wheel nvidia-cudnn-frontend carries them).
#
# Looked for, in this order: CUDNN_FRONTEND_INCLUDE_DIR (option or environment), <source>/deps, <source>/.venv, the
# site-packages of the active Python, CMAKE_PREFIX_PATH and the CUDA toolkit.
# Defines CudnnFrontend_FOUND, CUDNN_FRONTEND_INCLUDE_DIR and the target CudnnFrontend::headers.
set(CUDNN_FRONTEND_INCLUDE_DIR "$ENV{CUDNN_FRONTEND_INCLUDE_DIR}" CACHE PATH
  "Folder that holds cudnn_frontend.h (wheel nvidia-cudnn-frontend: <site-packages>/include)")
if(NOT CUDNN_FRONTEND_INCLUDE_DIR)
  unset(CUDNN_FRONTEND_INCLUDE_DIR CACHE)
  file(GLOB _fe_hints
    ${CMAKE_SOURCE_DIR}/deps/include ${CMAKE_SOURCE_DIR}/deps/*/include
    ${CMAKE_SOURCE_DIR}/.venv/include ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/include
    ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cudnn_frontend/include)
  find_program(_fe_python NAMES python3)
  if(_fe_python)
    execute_process(COMMAND ${_fe_python} -c
      "import sysconfig,site;p=sysconfig.get_paths();print(';'.join([p['purelib']+'/include',p['data']+'/include']+[s+'/include' for s in [site.getusersitepackages()]]))"
      OUTPUT_VARIABLE _fe_site OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${_fe_hints} ${_fe_site} ${CUDAToolkit_INCLUDE_DIRS}
    PATHS /usr/local/cuda/include /usr/local/include)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CudnnFrontend REQUIRED_VARS CUDNN_FRONTEND_INCLUDE_DIR)
if(CudnnFrontend_FOUND AND NOT TARGET CudnnFrontend::headers)
  add_library(CudnnFrontend::headers INTERFACE IMPORTED)
  set_target_properties(CudnnFrontend::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${CUDNN_FRONTEND_INCLUDE_DIR}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${CUDNN_FRONTEND_INCLUDE_DIR}")
endif()
