set -e
ln -s {folder}/data data
ln -s {folder}/linelist fort.19
interpolate-atmosphere {teff:.1f} {logg:.3f} {fe_h:+.3f} fort.8
synspec54 < fort.5 > synspec.log
